"""The router's prefix index alone: `python -m benchmarks.index --ranks 8 --blocks 1000000`.

Every rank stores chains of blocks and removes them again, the last block of a chain first, as caches evict;
half of its chains are every rank's, half its own. Block hashes are new ints in every event, as they are when
decoded from the wire. Figures are medians over the rounds. Progress goes to stderr; the last line of stdout
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import tracemalloc
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from tqdm import tqdm

from app.routing.index import PrefixIndex

CHAIN_BLOCKS = 32
Figures = dict[str, float]


@dataclass(frozen=True)
class Event:
    """Blocks that one rank stores or removes: a piece of a chain and the hash before it."""

    rank: int
    block_hashes: list[int]
    parent: int | None


@dataclass(frozen=True)
class Workload:
    """What the ranks hold.

    Attributes:
        ranks: so many ranks.
        blocks: blocks that each of them holds, rounded down to whole chains.
        event_blocks: blocks of one event at most: 32 as after a chunk of a prompt, 1 as in decoding.
        seed: of the hashes.
    """

    ranks: int
    blocks: int
    event_blocks: int
    seed: int

    def stored(self) -> Iterator[Event]:
        """The ranks take turns, chain by chain."""
        for own in zip(*(self._chains(rank) for rank in range(self.ranks)), strict=True):
            for rank, chain in enumerate(own):
                for start in range(0, CHAIN_BLOCKS, self.event_blocks):
                    parent = chain[start - 1 : start].tolist()
                    hashes = chain[start : start + self.event_blocks].tolist()
                    yield Event(rank, hashes, parent[0] if parent else None)

    def removed(self) -> Iterator[Event]:
        """The same blocks in the same order of chains, each from its end."""
        for own in zip(*(self._chains(rank) for rank in range(self.ranks)), strict=True):
            for rank, chain in enumerate(own):
                for stop in range(CHAIN_BLOCKS, 0, -self.event_blocks):
                    hashes = chain[max(0, stop - self.event_blocks) : stop].tolist()
                    yield Event(rank, hashes[::-1], None)

    def _chains(self, rank: int) -> Iterator[array[int]]:
        shared, own = random.Random(f"{self.seed} shared"), random.Random(f"{self.seed} {rank}")
        for number in range(self.blocks // CHAIN_BLOCKS):
            yield array("q", (own if number % 2 else shared).randbytes(8 * CHAIN_BLOCKS))


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=__doc__)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=65_536, help="blocks that each rank holds")
    parser.add_argument("--event-blocks", type=int, default=CHAIN_BLOCKS, help="blocks of one event")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if min(options.ranks, options.event_blocks, options.rounds) < 1 or options.blocks < CHAIN_BLOCKS:
        parser.error(f"--blocks must be at least {CHAIN_BLOCKS}, the other numbers at least 1")
    workload = Workload(options.ranks, options.blocks, options.event_blocks, options.seed)
    rounds = [measure_speed(workload) for _ in tqdm(range(options.rounds), desc="rounds", unit="round")]
    figures = {name: median(each[name] for each in rounds) for name in rounds[0]}
    print(json.dumps({**figures, **measure_memory(workload), **vars(options)}))


def measure_speed(workload: Workload) -> Figures:
    """One round on a new index: blocks per second, counted once for each rank that stores or removes them."""
    index = PrefixIndex()
    stored, removed = list(workload.stored()), list(workload.removed())
    num_blocks = sum(len(event.block_hashes) for event in stored)
    started = time.perf_counter()
    for event in stored:
        index.store(event.rank, event.block_hashes, event.parent)
    full = time.perf_counter()
    for event in removed:
        index.remove(event.rank, event.block_hashes)
    emptied = time.perf_counter()
    assert index.num_blocks == 0, "all that was stored was removed"
    return {
        "stored_blocks_per_s": num_blocks / (full - started),
        "removed_blocks_per_s": num_blocks / (emptied - full),
    }


def measure_memory(workload: Workload) -> Figures:
    """Bytes of Python's memory for one block that one rank holds, and for one that the index knows."""
    index = PrefixIndex()
    tracemalloc.start()
    for event in workload.stored():
        index.store(event.rank, event.block_hashes, event.parent)
    del event  # and with it the ints of its hashes that the index didn't keep
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = sum(index.num_blocks_of(rank) for rank in range(workload.ranks))
    return {"bytes_per_block": held_bytes / held, "bytes_per_distinct_block": held_bytes / index.num_blocks}


if __name__ == "__main__":
    main()
