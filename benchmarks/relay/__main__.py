"""The relay of foreign cache events alone: `python -m benchmarks.relay --blocks 65536`.

Microseconds of CPU time per block to decode a batch as vLLM publishes it, hash its blocks into our chain and
make our events, and the same for removals; for hashes of 64 bits, of 32 bytes, and for those that are taken
as they are. Then the delay from a worker's event, sent by another process every 10 ms, to the router's index:
over the feed, the rank's publisher and the router's subscriber. Figures are medians over the rounds, in turn.
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
import tracemalloc
from statistics import median

import numpy as np
from tqdm import tqdm

from app.engine.relay.relay import Relay
from benchmarks.arguments import positive
from benchmarks.relay.delay import measure_delay
from benchmarks.relay.workload import BLOCK_SIZE, Hashes, Workload

KINDS: dict[str, tuple[Hashes, bool]] = {
    "int64": ("opaque", False),
    "bytes32": ("opaque", True),
    "chained": ("chained", False),
}
Figures = dict[str, float]


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay", description=__doc__)
    parser.add_argument("--blocks", type=positive(int), default=65_536, help="blocks that the worker holds")
    parser.add_argument("--request-blocks", type=positive(int), default=32, help="blocks of one event")
    parser.add_argument("--rounds", type=positive(int), default=5)
    parser.add_argument("--batches", type=positive(int), default=1_000, help="for the delay")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.blocks < options.request_blocks:
        parser.error("--blocks must be at least --request-blocks")
    figures: dict[str, list[float]] = {}
    for _ in tqdm(range(options.rounds), desc="rounds", unit="round"):
        for name, (hashes, is_bytes) in KINDS.items():
            work = Workload(options.blocks, options.request_blocks, hashes, is_bytes, options.seed)
            for key, value in measure_speed(work).items():
                figures.setdefault(f"{name}_{key}", []).append(value)
            gc.collect()
    seconds = asyncio.run(measure_delay(options.batches))
    p50, p99 = (np.percentile(seconds, [50, 99]) * 1000).tolist()
    delay = {"delay_p50_ms": p50, "delay_p99_ms": p99, "delay_max_ms": max(seconds) * 1000}
    memory = measure_memory(Workload(options.blocks, options.request_blocks, "opaque", True, options.seed))
    medians = {key: median(values) for key, values in figures.items()}
    print(json.dumps({**medians, **delay, **memory, **vars(options)}))


def measure_speed(work: Workload) -> Figures:
    """Microseconds of CPU time per block."""
    stored, removed = work.payloads()
    relay = Relay(BLOCK_SIZE, hashes=work.hashes, source="the benchmark")
    num_blocks = len(stored) * work.request_blocks
    started = time.process_time()
    for payload in stored:
        relay.apply(payload)
    stored_s = time.process_time() - started
    assert relay.num_blocks == num_blocks
    started = time.process_time()
    for payload in removed:
        relay.apply(payload)
    removed_s = time.process_time() - started
    assert relay.num_blocks == 0
    return {"stored_us": stored_s / num_blocks * 1e6, "removed_us": removed_s / num_blocks * 1e6}


def measure_memory(work: Workload) -> Figures:
    """Bytes of Python's memory for one block that the worker holds."""
    stored, _ = work.payloads()
    relay = Relay(BLOCK_SIZE, hashes=work.hashes, source="the benchmark")
    tracemalloc.start()
    for payload in stored:
        relay.apply(payload)
    gc.collect()
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"bytes_per_block": held_bytes / relay.num_blocks}


if __name__ == "__main__":
    main()
