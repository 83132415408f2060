"""How many ranks does a trace need? `python -m app.simulation --config FILE --trace FILE --p99 SECONDS`.

`--config` is YAML with the fields of `app.simulation.config.ClusterConfig`: a rank's prefill rate, cache and
steps, as measured on the machine in question. The trace has Mooncake's format; `--agents` makes one up.
Exits with 1 when no number of ranks that was tried is enough. `--plot FILE.svg` or `.png` draws what is
printed (the extra `plot`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from app.errors import KvbeaconError
from app.routing.policies.registry import POLICIES
from app.settings.base import MAX_DP_SIZE
from app.simulation.config import MOONCAKE, read_cluster
from app.simulation.results.plot import Plot
from app.simulation.results.report import report
from app.simulation.traces.options import AGENTS_USAGE, agents_from, describe_agents
from app.simulation.traces.request import SimulatedRequest, speed_up
from app.simulation.traces.trace import read_trace
from app.simulation.what_if import find_ranks


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, search, print; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.p99 > 0 or not options.speed > 0 or not 1 <= options.max_ranks <= MAX_DP_SIZE:
        parser.error(f"--p99 and --speed must be above 0, --max-ranks from 1 to {MAX_DP_SIZE}")
    try:
        plot = Plot(options.plot) if options.plot else None
        config = read_cluster(options.config) if options.config else MOONCAKE
        trace = list(speed_up(_requests(options, config.rank.block_size), options.speed))
        with tqdm(unit="run", desc="simulating") as progress:

            def show(ranks: int) -> None:
                progress.set_postfix(ranks=ranks)
                progress.update()

            answer = find_ranks(config, trace, options.policy, options.p99, options.max_ranks, show)
        if plot is not None:
            plot.draw(answer, f"{_name(options)} at {options.speed:g}× its speed, {options.policy}")
    except KvbeaconError as error:
        parser.error(str(error))
    print(report(answer))
    return 0 if answer.ranks is not None else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.simulation",
        description=__doc__,
        epilog=describe_agents(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: the preset `mooncake`")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", type=Path, metavar="FILE", help="JSON lines in Mooncake's format")
    source.add_argument("--agents", nargs="*", metavar="NAME=VALUE", help=AGENTS_USAGE)
    parser.add_argument("--p99", type=float, metavar="SECONDS", required=True, help="wanted, to first token")
    parser.add_argument("--policy", choices=tuple(POLICIES), default="predicted_ttft")
    parser.add_argument("--speed", type=float, default=1.0, help="times as fast as the trace was recorded")
    parser.add_argument("--max-ranks", type=int, default=64, help="try no more than these")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it: .svg or .png")
    return parser


def _requests(options: argparse.Namespace, block_size: int) -> list[SimulatedRequest]:
    if options.trace:
        return read_trace(options.trace, block_size)
    return agents_from(options.agents, block_size)


def _name(options: argparse.Namespace) -> str:
    return options.trace.name if options.trace else " ".join(["agents", *options.agents])


if __name__ == "__main__":
    sys.exit(main())
