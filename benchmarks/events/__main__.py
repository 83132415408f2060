"""What KV events cost and how fast they are followed: `python -m benchmarks.events`.

The rank is a process of its own on one core; this one, the router, is on another; all sockets are real.
Medians over the rounds. Progress goes to stderr; stdout gets a table, then one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import TypeVar

from tqdm import tqdm

from app.errors import KvbeaconError
from app.models.store import resolve_model
from app.settings.model import ModelConfig
from benchmarks.events.engine import PROMPT_BLOCKS, measure_blocks, measure_steps
from benchmarks.events.rank import RankProcess, Work
from benchmarks.events.router import Stream, measure_gap, measure_load, measure_memory, measure_stream

Measured = TypeVar("Measured")

PREFILL = Work(num_batches=20_000, num_sequences=1, blocks_per_event=32, capacity=200_000)
"""Every step a chunk of a prompt: 512 tokens."""
DECODE = Work(num_batches=50_000, num_sequences=8, blocks_per_event=1, capacity=200_000)
"""Eight requests that have filled a block in the same step."""
GAP = Work(num_batches=0, num_sequences=1, blocks_per_event=4, capacity=200_000)
"""What is missed; a snapshot then has 200,000 blocks."""


def main() -> None:
    """Parse, run, print."""
    options = _parser().parse_args()
    try:
        figures = _measure(options)
    except (KvbeaconError, TimeoutError) as error:
        sys.exit(f"benchmarks.events failed: {error}")
    for name, value in figures.items():
        print(f"{name:40} {value:14,.3f}")
    print(json.dumps(figures | {"rounds": options.rounds, "snapshot_blocks": options.blocks}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=1_000_000, help="of the snapshot that is loaded")
    parser.add_argument("--port", type=int, default=5857, help="of the rank; replay 10 above, load beside")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="whose steps are measured")
    return parser


def _measure(options: argparse.Namespace) -> dict[str, float]:
    rank_core, own_core = sorted(os.sched_getaffinity(0))[:2]
    progress = tqdm(total=10, unit="part")

    def rounds(measure: Callable[[int], Measured]) -> list[Measured]:
        results = [measure(number) for number in range(options.rounds)]
        progress.update()
        return results

    port = options.port
    chunk = rounds(lambda number: measure_blocks(port, PROMPT_BLOCKS, number))
    single = rounds(lambda number: measure_blocks(port, 1, number))
    model_dir = resolve_model(ModelConfig(path=options.model))
    steps = rounds(lambda number: measure_steps(port, model_dir, 2, chunk[0], single[0], number))
    os.sched_setaffinity(0, {own_core})
    with RankProcess(port, rank_core, buffer_steps=200_000) as rank:
        memory = asyncio.run(measure_memory(rank, options.blocks // 4))
        loads = rounds(lambda _: asyncio.run(measure_load(rank, options.blocks)))
        streams = {
            name: rounds(partial(_stream, rank, work))
            for name, work in {"prefill": PREFILL, "decode": DECODE}.items()
        }
        gaps = {
            f"gap_{count}_{'replay' if replay else 'snapshot'}_s": rounds(partial(_gap, rank, count, replay))
            for count in (1_000, 100_000)
            for replay in (True, False)
        }
    progress.close()
    figures = {
        "engine_us_per_block": median(each.engine_us for each in chunk),
        "publisher_us_per_block": median(each.publisher_us for each in chunk),
        "engine_us_per_single_block": median(each.engine_us for each in single),
        "publisher_us_per_single_block": median(each.publisher_us for each in single),
        "step_share_prefill": median(each.prefill for each in steps),
        "step_share_decode": median(each.decode for each in steps),
        "step_share_highest": max(each.highest for each in steps),
    }
    for name, of_rounds in streams.items():
        figures |= {
            f"published_blocks_per_s_{name}": median(s.num_blocks / s.published.cpu_s for s in of_rounds),
            f"published_events_per_s_{name}": median(s.num_events / s.published.cpu_s for s in of_rounds),
            f"consumed_blocks_per_s_{name}": median(s.num_blocks / s.cpu_s for s in of_rounds),
            f"consumed_events_per_s_{name}": median(s.num_events / s.cpu_s for s in of_rounds),
            f"end_to_end_blocks_per_s_{name}": median(s.num_blocks / s.wall_s for s in of_rounds),
        }
    figures |= {name: median(seconds) for name, seconds in gaps.items()}
    return figures | {
        "snapshot_load_s": median(loads),
        "router_bytes_per_block": memory,
    }


def _stream(rank: RankProcess, work: Work, number: int) -> Stream:
    return asyncio.run(measure_stream(rank, work))


def _gap(rank: RankProcess, num_batches: int, replay: bool, number: int) -> float:
    return asyncio.run(measure_gap(rank, GAP, num_batches, replay=replay))


if __name__ == "__main__":
    main()
