"""The same conversations on two ranks of every engine: `python -m benchmarks.engines`.

Engines: torch, vllm, and ranks by URL whose workers run one of these (remote-torch, remote-vllm). What vLLM
takes part in runs in an environment that has it; elsewhere it is left out, and said so. Starts a Ray cluster
of its own and deploys each graph again for each round, so that every run starts with empty caches; figures
are medians over the rounds. Progress goes to stderr; stdout gets a table, then one JSON object.

What the ways cost: `python -m benchmarks.engines.hop` (from a URL rank to its worker) and
`python -m benchmarks.relay` (from an engine's events to ours).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from statistics import median

import httpx

from app.config import load_config
from app.errors import KvbeaconError
from benchmarks.arguments import positive
from benchmarks.engines.graphs import DP_SIZE, ENGINES, deployed_engine, engine_args
from benchmarks.engines.run import EngineRun, measure
from benchmarks.graphs.graph import running_ray
from benchmarks.machine import machine
from benchmarks.serving.client import RequestFailedError
from benchmarks.serving.summary import median_summary, table
from benchmarks.serving.workload import WorkloadShape, make_conversations


def main() -> None:
    """Parse, run, print."""
    options = _parser().parse_args()
    engines = [name for name in options.engines if not ("vllm" in name and find_spec("vllm") is None)]
    for name in options.engines:
        if name not in engines:
            print(f"{name} is left out: vLLM isn't installed in this environment", file=sys.stderr)
    try:
        runs = _run_all(options, engines)
    except (KvbeaconError, RequestFailedError, httpx.HTTPError, TimeoutError) as error:
        sys.exit(f"benchmarks.engines failed: {error!r}")
    summaries = {name: median_summary([each.conversations for each in runs[name]]) for name in engines}
    speeds = {name: median(each.stream_tokens_per_s for each in runs[name]) for name in engines}
    print(table(summaries))
    print(f"\noutput tokens per second of {options.streams} streams at once:")
    for name, speed in speeds.items():
        print(f"  {name:<14}{speed:8.1f}")
    figures = {
        name: {**asdict(summary), "stream_tokens_per_s": speeds[name]} for name, summary in summaries.items()
    }
    print(json.dumps({"engines": figures, "options": vars(options), "machine": machine()}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=positive(int), default=3, help="runs of each engine, in turn")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as model.path")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--num-blocks", type=positive(int), default=512, help="KV blocks of 32 of each rank")
    parser.add_argument("--users", type=positive(int), default=3, help="users of each of 4 system prompts")
    parser.add_argument("--turns", type=positive(int), default=3, help="questions of each user")
    parser.add_argument("--streams", type=positive(int), default=16, help="answers streamed at once")
    parser.add_argument(
        "--stream-tokens", type=positive(int), default=64, help="output tokens of each stream"
    )
    return parser


def _run_all(options: argparse.Namespace, engines: Sequence[str]) -> dict[str, list[EngineRun]]:
    """All rounds; each begins with another engine, as the machine is noisy."""
    shape = WorkloadShape(
        system_prompts=4,
        users=options.users,
        turns=options.turns,
        system_words=300,
        question_words=40,
        seed=1,
    )
    settings = {"model": options.model, "dtype": options.dtype, "num_blocks": options.num_blocks}
    runs: dict[str, list[EngineRun]] = {name: [] for name in engines}
    # Room for the workers of ranks by URL beside the ranks themselves.
    room = load_config(engine_args("torch", **settings, dp_size=3 * DP_SIZE))
    with running_ray(room) as url:
        for number in range(options.rounds):
            first = number % len(engines)
            for name in (*engines[first:], *engines[:first]):
                with deployed_engine(name, url, **settings):
                    run = measure(
                        url,
                        make_conversations(shape),
                        streams=options.streams,
                        stream_tokens=options.stream_tokens,
                        label=f"round {number + 1}/{options.rounds} {name}",
                    )
                    runs[name].append(asyncio.run(run))
    return runs


if __name__ == "__main__":
    main()
