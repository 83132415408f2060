"""The router's prefix index alone: `python -m benchmarks.index --ranks 8 --blocks 1000000`.

Every rank stores chains of blocks and removes them again, the last block of a chain first, as caches evict;
half of its chains are every rank's, half its own. Events come as batches off the wire and are decoded first.
A choice is the router's whole decision: match, cost of every rank, reservation. With `--peer` Dynamo's Rust
`RadixTree` (the extra `peers`) does the same work in this process: its events are JSON, its matches scores by
rank. Its tree has a thread of its own, and a call waits for that to wake up: `--one-core` keeps this process
on one core, where that costs it least. Figures are medians over the rounds, which the two take in turn.
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from statistics import median

import numpy as np
from tqdm import tqdm

from app.routing.index.prefix_index import PrefixIndex
from benchmarks.index.sides import RadixTree, Router, Side
from benchmarks.index.workload import CHAIN_BLOCKS, Workload

NUM_QUERIES = 2_000
Figures = dict[str, float]


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=__doc__)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=65_536, help="blocks that each rank holds")
    parser.add_argument("--event-blocks", type=int, default=CHAIN_BLOCKS, help="blocks of one event")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peer", action="store_true", help="Dynamo's RadixTree as well")
    parser.add_argument("--one-core", action="store_true", help="stay on one core (Linux)")
    options = parser.parse_args()
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if min(options.ranks, options.event_blocks, options.rounds) < 1 or options.blocks < CHAIN_BLOCKS:
        parser.error(f"--blocks must be at least {CHAIN_BLOCKS}, the other numbers at least 1")
    workload = Workload(options.ranks, options.blocks, options.event_blocks, options.seed)
    new_sides: dict[str, Callable[[], Side]] = {"": lambda: Router(options.ranks)}
    if options.peer:
        new_tree = _radix_tree()
        new_sides["peer_"] = lambda: RadixTree(new_tree())
    figures: Figures = {}
    for name, rounds in _measure(new_sides, workload, options.rounds).items():
        figures |= {f"{name}{key}": median(each[key] for each in rounds) for key in rounds[0]}
    if options.peer:
        figures["stored_ratio"] = figures["stored_blocks_per_s"] / figures["peer_stored_blocks_per_s"]
        figures["choose_p50_ratio"] = figures["choose_p50_us"] / figures["peer_choose_p50_us"]
    print(json.dumps({**figures, **measure_memory(workload), **vars(options)}))


def _radix_tree() -> Callable[[], object]:
    try:
        tree: Callable[[], object] = import_module("dynamo._core").RadixTree
    except ImportError as error:
        sys.exit(f"--peer needs the extra `peers` (ai-dynamo-runtime): {error}")
    return tree


def _measure(
    new_sides: dict[str, Callable[[], Side]], workload: Workload, rounds: int
) -> dict[str, list[Figures]]:
    figures: dict[str, list[Figures]] = {name: [] for name in new_sides}
    for _ in tqdm(range(rounds), desc="rounds", unit="round"):
        for name, new_side in new_sides.items():
            figures[name].append(measure_speed(new_side(), workload))
            gc.collect()
    return figures


def measure_speed(side: Side, workload: Workload) -> Figures:
    """One round on a new side: blocks per second, counted once for each rank that stores or removes them."""
    stored = [(event.rank, side.stored(event)) for event in workload.stored()]
    num_blocks = workload.ranks * (workload.blocks // CHAIN_BLOCKS) * CHAIN_BLOCKS
    started = time.perf_counter()
    for rank, payload in stored:
        side.apply(rank, payload)
    stored_s = time.perf_counter() - started
    queried = _query(side, workload)
    removed = [(event.rank, side.removed(event)) for event in workload.removed()]
    started = time.perf_counter()
    for rank, payload in removed:
        side.apply(rank, payload)
    removed_s = time.perf_counter() - started
    assert not any(side.query(side.prompt(next(workload.queries(1)))).values()), "all stored was removed"
    return {
        "stored_blocks_per_s": num_blocks / stored_s,
        "removed_blocks_per_s": num_blocks / removed_s,
        **queried,
    }


def _query(side: Side, workload: Workload) -> Figures:
    seconds = []
    for query in map(side.prompt, workload.queries(NUM_QUERIES)):
        started = time.perf_counter()
        depths = side.query(query)
        seconds.append(time.perf_counter() - started)
        assert max(depths.values()) <= CHAIN_BLOCKS
        side.after_query()
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e6
    return {"choose_per_s": len(seconds) / sum(seconds), "choose_p50_us": p50, "choose_p99_us": p99}


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
