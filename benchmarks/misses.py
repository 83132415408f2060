"""What the reasons of misses cost a router: `python -m benchmarks.misses`.

Conversations of chats, each turn longer than the last, some with a clock in front, on ranks whose caches are
full: so everything is measured, forgetting too. The last line of stdout is one JSON object:

Times are of this thread's CPU, whatever else the machine does.

- `per_request_us`, `per_request_p50_us`, `per_request_p99_us`: mean and percentiles of everything that a
  request costs: finding, adding the content of its prompt, counting; `find_p50_us`, `note_p50_us` and
  `outcome_p50_us` are the parts, and `choose_p50_us` is the choice itself, to compare.
- `removed_us`: mean microseconds for each block that a rank drops.
- `bytes_per_block`: of memory, for each block that is remembered.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
import tracemalloc
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from statistics import fmean, median, quantiles
from typing import Literal

import msgspec

from app.hashing import chain, wire_hashes
from app.routing.core import RoutingCore
from app.routing.decisions.decision import Prompt
from app.routing.decisions.decision_log import Outcome
from app.routing.index.index_writer import IndexWriter
from app.routing.misses.miss_book import MissBook
from app.settings.routing import RoutingConfig
from app.simulation.config import RankConfig
from app.simulation.ranks.fifo_rank import FifoRank
from app.simulation.traces.request import SimulatedRequest
from app.text.outline import Outline
from benchmarks.arguments import positive

BLOCK_SIZE = 16
PIECE_TOKENS = 24
"""Tokens of a piece of content: a line, or a long sentence."""


@dataclass
class Times:
    """Seconds of each part, one for each request, and of all removals."""

    choose_s: list[float] = field(default_factory=list)
    find_s: list[float] = field(default_factory=list)
    note_s: list[float] = field(default_factory=list)
    outcome_s: list[float] = field(default_factory=list)
    all_s: list[float] = field(default_factory=list)
    removed_s: float = 0.0
    removed_blocks: int = 0
    tokens: int = 0


def prompts(num_requests: int, mean_tokens: int, rng: random.Random) -> Iterator[tuple[list[int], Outline]]:
    """Turns of conversations that go on at the same time: token ids and their outline."""
    system = [rng.randrange(50_000) for _ in range(512)]
    sessions: list[list[int]] = []
    for number in range(num_requests):
        if len(sessions) < 64 or rng.random() < 0.1:
            clock = [number % 50_000] * 8 if rng.random() < 0.2 else []
            sessions.append([*clock, *system])
        session = rng.choice(sessions[-64:])
        session += [rng.randrange(50_000) for _ in range(rng.randrange(mean_tokens // 8, mean_tokens // 3))]
        if len(session) > 2 * mean_tokens:
            sessions.remove(session)
        ends = [*range(PIECE_TOKENS, len(session), PIECE_TOKENS), len(session)]
        hashes = [hash(tuple(session[end - PIECE_TOKENS : end])) for end in ends]
        messages = [end // 256 for end in ends]
        roles = ["user"] * (messages[-1] + 1)
        yield list(session), Outline(hashes, ends, messages, [0] * len(ends), roles)


def measure(num_requests: int, mean_tokens: int, capacity: int, num_ranks: int, seed: int) -> Times:
    """The times of `num_requests`, after as many that fill the memory."""
    core = RoutingCore(RoutingConfig(), num_ranks)
    now = [0.0]
    book = MissBook(core.index, capacity, 1000, lambda: now[0])
    on_removed, times = core.index.on_removed, Times()

    def removed(rank: int, block_hashes: Collection[int], cause: Literal["evicted", "lost"]) -> None:
        started = time.thread_time()
        on_removed(rank, block_hashes, cause)
        times.removed_s += time.thread_time() - started
        times.removed_blocks += len(block_hashes)

    core.index.on_removed = removed
    config = RankConfig(block_size=BLOCK_SIZE, num_blocks=capacity // (2 * num_ranks))
    ranks = [FifoRank(rank, config, lambda position, moment, cached: None) for rank in range(num_ranks)]
    writers = [IndexWriter(core.index, rank) for rank in range(num_ranks)]
    for rank in range(num_ranks):
        core.join(rank)
        core.membership.set(rank, "exact")
    for number, (token_ids, outline) in enumerate(
        prompts(2 * num_requests, mean_tokens, random.Random(seed))
    ):
        if number == num_requests:
            times = Times()
        now[0] += 0.05
        digests = chain(token_ids, BLOCK_SIZE)
        prompt = Prompt(str(number), wire_hashes(digests), len(token_ids), BLOCK_SIZE)
        asked = time.thread_time()
        decision = core.choose(prompt, now[0])
        chosen = time.thread_time()
        core.reservations.acknowledge(decision.rank, [prompt.request_id])
        answering = Outcome(
            prompt.request_id, decision.rank, "answering", cached_tokens=decision.cached_tokens
        )
        started = time.thread_time()
        book.find(prompt, decision)
        found = time.thread_time()
        book.note((prompt.request_id, 0), "t", outline)
        noted = time.thread_time()
        book.record_outcome(answering)
        ended = time.thread_time()
        times.choose_s.append(chosen - asked)
        times.find_s.append(found - started)
        times.note_s.append(noted - found)
        times.outcome_s.append(ended - noted)
        times.all_s.append(ended - started)
        times.tokens += len(token_ids)
        request = SimulatedRequest(now[0], len(token_ids), 1, range(len(digests)))
        ranks[decision.rank].arrive(number, request, digests, now[0])
        writers[decision.rank].apply(ranks[decision.rank].drain_events())
        core.load.report(decision.rank, ranks[decision.rank].load(now[0]), now[0])
    table = book.table("")
    print({**table, "rows": len(table["rows"])}, file=sys.stderr)
    return times


def bytes_per_block(mean_tokens: int, seed: int) -> float:
    """Memory that a book of 50,000 blocks takes, for each of them."""
    core = RoutingCore(RoutingConfig(), 1)
    core.join(0)
    core.membership.set(0, "exact")
    book = MissBook(core.index, 50_000, 1, lambda: 0.0)
    given = [
        (wire_hashes(chain(token_ids, BLOCK_SIZE)), len(token_ids), outline)
        for token_ids, outline in prompts(2_000, mean_tokens, random.Random(seed))
    ]
    gc.collect()
    tracemalloc.start()
    for number, (hashes, num_tokens, outline) in enumerate(given):
        # As from the wire: numbers of its own.
        prompt = Prompt(str(number), [each + 0 for each in hashes], num_tokens, BLOCK_SIZE)
        book.find(prompt, core.choose(prompt, 0.0))
        core.reservations.release(prompt.request_id)
        copied = msgspec.structs.replace(outline, hashes=[each + 0 for each in outline.hashes])
        book.note((prompt.request_id, 0), None, copied)
        book.record_outcome(Outcome(prompt.request_id, 0, "answering", cached_tokens=0))
        core.index.store(0, prompt.block_hashes[-40:])
        core.index.remove(0, prompt.block_hashes[-40:])
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    num_blocks: int = book.table("")["memory"]["prompt_blocks"]
    return size / num_blocks


def micros(seconds: float) -> float:
    """Microseconds, to two places."""
    return round(seconds * 1e6, 2)


def main() -> int:
    """Parse, measure, print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.misses", description=__doc__)
    parser.add_argument("--requests", type=positive(int), default=5_000, help="that are measured")
    parser.add_argument("--tokens", type=positive(int), default=2_000, help="of a prompt, about")
    parser.add_argument("--capacity", type=positive(int), default=65_536, help="blocks that are remembered")
    parser.add_argument("--ranks", type=positive(int), default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    times = measure(options.requests, options.tokens, options.capacity, options.ranks, options.seed)
    parts = {"find": times.find_s, "note": times.note_s, "outcome": times.outcome_s, "choose": times.choose_s}
    figures = {
        "per_request_us": micros(fmean(times.all_s)),
        "per_request_p50_us": micros(median(times.all_s)),
    }
    figures |= {f"{name}_p50_us": micros(median(each)) for name, each in parts.items()}
    figures["per_request_p99_us"] = micros(quantiles(times.all_s, n=100)[-1])
    figures["removed_us"] = round(times.removed_s / max(1, times.removed_blocks) * 1e6, 3)
    figures["mean_prompt_tokens"] = round(times.tokens / len(times.all_s))
    figures["bytes_per_block"] = round(bytes_per_block(options.tokens, options.seed))
    print(json.dumps({"benchmark": "misses", **vars(options), **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
