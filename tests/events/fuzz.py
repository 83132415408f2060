"""Throws inputs at everything that reads what others wrote: `python -m tests.events.fuzz --inputs N`.

Shows that nothing is raised but the one error that is allowed, and no message of it is long; that no input
takes more of the processor's time than its size allows; and that memory stays flat. The same seed gives the
same inputs. An input that fails is printed as hex with what makes it again, and the exit status is 1. The
last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import itertools
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from app.errors import ConfigError, WireError
from app.events.batch_codec import decode_batch
from app.events.descriptor import read_descriptor, read_publishers
from app.events.endpoints import parse
from app.events.replay import parse_request
from app.events.schema import BlockStored
from tests.events import fuzz_inputs

MAX_MS = 200
"""Processor time for an input of up to `BIG` bytes."""
BIG = 2**20
MAX_MS_PER_MIB = 150
"""Processor time for a bigger one: it may be full of hashes of a byte each."""
MAX_GROWTH_MIB = 4
"""Of memory between the end of the warm-up and the end of all inputs."""
MAX_MESSAGE = 1_000
"""Characters of an error's message about what another system wrote; it ends up in a log."""
MAX_HEX = 20_000
"""Characters printed of an input that fails; the seed and its number make the rest."""
WARM_UP = 0.1
MONSTERS = 100
"""More than any parser has."""
CHUNK = 2_000
HANG_S = 120


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        monsters: gives the inputs that come first.
        make: gives the next input.
        read: the parser.
        error: all that it may raise.
    """

    name: str
    monsters: Callable[[], Iterable[Any]]
    make: Callable[[Random], Any]
    read: Callable[[Any], object]
    error: type[Exception]


@dataclass(frozen=True)
class Figures:
    """What one parser's run showed.

    Attributes:
        accepted: inputs that raised nothing.
        slowest_ms: of inputs of up to `BIG` bytes, in processor time.
        slowest_big_ms: of the others.
        rss_start_mib: resident memory after the warm-up, which has the biggest inputs in it.
    """

    inputs: int
    accepted: int
    inputs_per_s: int
    slowest_ms: float
    slowest_big_ms: float
    rss_start_mib: float
    rss_end_mib: float


class FuzzError(Exception):
    """An input did what none may; the message has what makes it again."""


def _decode_batch(payload: bytes) -> None:
    """With token ids or without, by the payload's length, so that each payload is always read alike."""
    batch = decode_batch(payload, token_ids=len(payload) % 2 == 0)
    if len(payload) > BIG:
        return
    for event in batch.events:
        if isinstance(event, BlockStored) and event.block_size < 0:
            raise ValueError(f"blocks of {event.block_size} tokens")
        for block_hash in getattr(event, "block_hashes", ()):
            if not -(2**63) <= block_hash < 2**63:
                raise OverflowError(f"hash {block_hash} is no int64")


TARGETS = [
    Target(
        "decode_batch",
        fuzz_inputs.monstrous_batches,
        fuzz_inputs.batch_payload,
        _decode_batch,
        WireError,
    ),
    Target(
        "parse_request",
        lambda: fuzz_inputs.MONSTROUS_REQUESTS,
        fuzz_inputs.request_frames,
        parse_request,
        WireError,
    ),
    Target(
        "read_descriptor",
        lambda: fuzz_inputs.MONSTROUS_VALUES,
        fuzz_inputs.descriptor,
        lambda value: read_descriptor(value, "10.0.0.5"),
        WireError,
    ),
    Target(
        "read_publishers",
        lambda: fuzz_inputs.MONSTROUS_VALUES,
        fuzz_inputs.publishers,
        lambda value: read_publishers({"publishers": value}, "10.0.0.5"),
        WireError,
    ),
    Target(
        "parse",
        lambda: fuzz_inputs.MONSTROUS_CONFIGS,
        fuzz_inputs.config_text,
        lambda text: parse(text, 16, 2),
        ConfigError,
    ),
]


def fuzz(target: Target, inputs: int, seed: int) -> Figures:
    """Give `inputs` inputs to `target`.

    Raises:
        FuzzError: one of them raised something else, took too long or was answered at length, or memory grew.
    """
    rng = Random(f"{seed}/{target.name}")
    made = itertools.chain(target.monsters(), (target.make(rng) for _ in itertools.count()))
    run = _Run(target, seed)
    warm_up = max(MONSTERS, int(inputs * WARM_UP))
    run.give(made, warm_up)
    rss_start = rss_mib()
    started = time.perf_counter()
    run.give(made, inputs - warm_up)
    seconds = time.perf_counter() - started
    rss_end = rss_mib()
    if rss_end - rss_start > MAX_GROWTH_MIB:
        raise FuzzError(f"{target.name}, seed {seed}: memory grew from {rss_start:.1f} to {rss_end:.1f} MiB")
    return Figures(
        inputs=inputs,
        accepted=run.accepted,
        inputs_per_s=round((inputs - warm_up) / seconds),
        slowest_ms=run.slowest_ms,
        slowest_big_ms=run.slowest_big_ms,
        rss_start_mib=round(rss_start, 1),
        rss_end_mib=round(rss_end, 1),
    )


class _Run:
    """What is counted while inputs are given to one target."""

    def __init__(self, target: Target, seed: int) -> None:
        self.accepted = 0
        self.slowest_ms = 0.0
        self.slowest_big_ms = 0.0
        self._target = target
        self._seed = seed
        self._given = 0

    def give(self, made: Iterator[Any], count: int) -> None:
        """The next `count` inputs."""
        end, stderr = self._given + count, sys.__stderr__
        assert stderr is not None
        try:
            while self._given < end:
                # Code that hangs in C can't be interrupted: it is shown where, and the process ends.
                faulthandler.dump_traceback_later(HANG_S, exit=True, file=stderr)
                self._give_chunk(itertools.islice(made, min(CHUNK, end - self._given)))
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _give_chunk(self, chunk: Iterable[Any]) -> None:
        read, allowed = self._target.read, self._target.error
        clock = time.thread_time_ns
        for given in chunk:
            started = clock()
            try:
                read(given)
                self.accepted += 1
            except allowed as error:
                if allowed is WireError and len(str(error)) > MAX_MESSAGE:
                    raise self._failure(given, f"message of {len(str(error))} characters") from None
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # what panics in Rust is no Exception
                raise self._failure(given, repr(error)) from error
            taken_ms = (clock() - started) / 1e6
            if taken_ms > self.slowest_ms:
                self._record_slow(given, taken_ms)
            self._given += 1

    def _record_slow(self, given: Any, taken_ms: float) -> None:
        mib = len(given) / 2**20 if isinstance(given, bytes) else 0
        if taken_ms > max(MAX_MS, mib * MAX_MS_PER_MIB):
            raise self._failure(given, f"took {taken_ms:.0f} ms")
        if mib * 2**20 > BIG:
            self.slowest_big_ms = max(self.slowest_big_ms, round(taken_ms, 3))
        else:
            self.slowest_ms = round(taken_ms, 3)

    def _failure(self, given: Any, why: str) -> FuzzError:
        where = f"{self._target.name}, seed {self._seed}, input {self._given}"
        return FuzzError(f"{where}: {why[:MAX_MESSAGE]}\n{as_hex(given)}")


def as_hex(given: Any) -> str:
    """The bytes of an input: itself, its frames, or its representation in UTF-8; cut where there are many."""
    if isinstance(given, bytes):
        shown = given.hex()
    elif isinstance(given, list) and all(isinstance(frame, bytes) for frame in given):
        shown = " | ".join(frame.hex() for frame in given)
    else:
        shown = "(seed and number must do)"  # for huge integers and deep nesting
        with suppress(ValueError, RecursionError):
            shown = repr(given).encode().hex()
    return shown if len(shown) <= MAX_HEX else f"{shown[:MAX_HEX]}… ({len(shown)} characters)"


def rss_mib() -> float:
    """The process's resident memory, without rubbish and what the allocator only keeps for later."""
    gc.collect()
    with suppress(AttributeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.events.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="for each parser")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    for target in TARGETS:
        try:
            result = fuzz(target, options.inputs, options.seed)
        except FuzzError as error:
            print(error, flush=True)
            return 1
        figures[target.name] = asdict(result)
        print(f"{target.name}: {result}", flush=True)
    print(json.dumps({"seed": options.seed, "targets": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
