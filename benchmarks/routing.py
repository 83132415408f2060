"""Policies on a trace, in virtual time: `python -m benchmarks.routing --trace FILE --ranks 8,16`.

Reads Mooncake's JSON lines, or makes up requests: of agents (`--agents`), or of groups that share prefixes
(`--generate N`). Every number of ranks and every speed is a cell. Load per rank is alike in cells of one
speed: a trace, that of agents too, runs `speed * ranks / 8` times as fast as it was recorded, and groups'
requests come at `speed * ranks` times `--rate`.

`--policies` also takes other projects' policies (`benchmarks.peers`), where the router knows everything at
once and the ranks don't decode, as with the preset `mooncake`.

The ranks are those of a preset or of a YAML file with `ClusterConfig`'s fields. `mooncake` is the simplest
model; with `delayed` the router learns of the ranks as late as in life, which is also faster to simulate.
Tables and progress go to stderr; the last line of stdout is one JSON object: `policies` of the first cell,
and all `cells`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tqdm import tqdm

from app.errors import ConfigError, KvbeaconError
from app.routing.policies.registry import POLICIES
from app.simulation.config import DELAYED, MOONCAKE, ClusterConfig, read_cluster
from app.simulation.results.bounds import Bound, bound_of_caches, lower_bound
from app.simulation.results.outcome import Figures
from app.simulation.results.report import class_table
from app.simulation.simulator import simulate
from app.simulation.traces.options import AGENTS_USAGE, agents_from, describe_agents
from app.simulation.traces.request import SimulatedRequest, speed_up
from app.simulation.traces.shared_prefixes import SharedPrefixes
from app.simulation.traces.trace import read_trace
from benchmarks.arguments import list_of, positive
from benchmarks.peers.registry import PEERS
from benchmarks.peers.replay import can_replay, replay

PRESETS: Final = {"mooncake": MOONCAKE, "delayed": DELAYED}
DEFAULT_POLICIES: Final = tuple(name for name in POLICIES if name != "session")
"""Recorded traces name no sessions; without one, `session` does what `predicted_ttft` does."""
_HEAD = (
    f"{'policy':<16}{'hit rate':>9}{'mean s':>9}{'p50 s':>9}{'p90 s':>9}{'p99 s':>9}"
    f"{'imbalance':>11}{'requests/s':>12}{'choose us':>11}"
)


@dataclass(frozen=True)
class Workload:
    """Where requests come from.

    Attributes:
        trace: the recorded ones or those of agents, if there are any.
        generated: what to make up otherwise, with the rate for one rank.
    """

    trace: Sequence[SimulatedRequest] | None
    generated: SharedPrefixes

    @property
    def num_requests(self) -> int:
        """Requests of every cell."""
        return self.generated.num_requests if self.trace is None else len(self.trace)

    def at(self, ranks: int, speed: float) -> Iterable[SimulatedRequest]:
        """The requests of one cell."""
        if self.trace is not None:
            return speed_up(self.trace, speed * ranks / MOONCAKE.ranks)
        rate = self.generated.requests_per_s * speed * ranks
        return self.generated.model_copy(update={"requests_per_s": rate}).requests()


@dataclass(frozen=True)
class Cell:
    """All policies at one number of ranks and one speed; without decoding also what none can beat.

    Attributes:
        lower_bound: with caches without end.
        bound_of_caches: with caches of the ranks' size.
    """

    ranks: int
    speed: float
    policies: Mapping[str, Figures]
    lower_bound: Bound | None
    bound_of_caches: Bound | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        base = read_cluster(options.config) if options.config else PRESETS[options.preset]
        workload = _workload(options, base)
        _check_peers(options.policies, base)
    except KvbeaconError as error:
        parser.error(str(error))
    cells = []
    num_runs = len(options.ranks) * len(options.speeds) * len(options.policies)
    with tqdm(total=num_runs * workload.num_requests, unit="request", unit_scale=True) as progress:
        for ranks in options.ranks:
            for speed in options.speeds:
                config = base.model_copy(update={"ranks": ranks})
                cells.append(run_cell(config, workload, speed, options.policies, progress.update))
                progress.write(table(cells[-1]), file=sys.stderr)
    print(json.dumps({"policies": asdict(cells[0])["policies"], "cells": [asdict(each) for each in cells]}))


def run_cell(
    config: ClusterConfig,
    workload: Workload,
    speed: float,
    policies: Sequence[str],
    on_request: Callable[[], object] = lambda: None,
) -> Cell:
    """One cell; the bounds are left out where there are too many requests to hold at once."""
    figures = {}
    for policy in policies:
        requests = workload.at(config.ranks, speed)
        if policy in PEERS:
            outcome = replay(config, requests, PEERS[policy](config), on_request)
        else:
            outcome = simulate(config, requests, policy, on_request)
        figures[policy] = outcome.figures()
    if config.rank.decode is not None or workload.trace is None:
        return Cell(config.ranks, speed, figures, None, None)
    trace = list(workload.at(config.ranks, speed))
    return Cell(config.ranks, speed, figures, lower_bound(config, trace), bound_of_caches(config, trace))


def table(cell: Cell) -> str:
    """A cell for people."""
    rows = [f"\n{cell.ranks} ranks, speed {cell.speed:g}", _HEAD]
    for name, each in cell.policies.items():
        rows.append(
            f"{name:<16}{each.hit_rate:>9.1%}{each.ttft_mean_s:>9.3f}{each.ttft_p50_s:>9.3f}"
            f"{each.ttft_p90_s:>9.3f}{each.ttft_p99_s:>9.3f}{each.imbalance:>11.3f}"
            f"{each.requests_per_s:>12.0f}{each.choose_us:>11.1f}"
        )
    bounds = {"lower bound": cell.lower_bound, "  of such caches": cell.bound_of_caches}
    for name, bound in bounds.items():
        if bound is not None:
            rows.append(f"{name:<16}{bound.hit_rate:>9.1%}{bound.ttft_mean_s:>9.3f}")
    for name, each in cell.policies.items():
        classes = class_table(each)
        if classes:
            rows += [f"{name}, by class of request", *classes]
    return "\n".join(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing",
        description=__doc__,
        epilog=describe_agents(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", type=Path, metavar="FILE", help="JSON lines in Mooncake's format")
    source.add_argument("--agents", nargs="*", metavar="NAME=VALUE", help=AGENTS_USAGE)
    source.add_argument("--generate", type=positive(int), metavar="N", help="make up N requests of groups")
    ranks = parser.add_mutually_exclusive_group()
    ranks.add_argument("--preset", choices=PRESETS, default="mooncake")
    ranks.add_argument("--config", type=Path, metavar="FILE", help="YAML with the fields of ClusterConfig")
    parser.add_argument("--ranks", type=list_of(positive(int)), default=[MOONCAKE.ranks])
    parser.add_argument("--speeds", type=list_of(positive(float)), default=[1.0])
    parser.add_argument("--policies", type=list_of(_policy), default=DEFAULT_POLICIES)
    parser.add_argument("--rate", type=positive(float), default=2.0, help="groups' requests/s for each rank")
    parser.add_argument("--groups", type=positive(int), default=200, help="groups of --generate")
    parser.add_argument("--seed", type=int, default=0, help="of --generate")
    return parser


def _workload(options: argparse.Namespace, base: ClusterConfig) -> Workload:
    block_size = base.rank.block_size
    generated = SharedPrefixes(
        num_requests=options.generate or 1,
        requests_per_s=options.rate,
        num_groups=options.groups,
        block_size=block_size,
        seed=options.seed,
    )
    return Workload(_trace(options, block_size), generated)


def _trace(options: argparse.Namespace, block_size: int) -> list[SimulatedRequest] | None:
    if options.trace:
        return read_trace(options.trace, block_size)
    return None if options.agents is None else agents_from(options.agents, block_size)


def _policy(name: str) -> str:
    if name not in POLICIES and name not in PEERS:
        raise argparse.ArgumentTypeError(f"{name!r}: allowed are {', '.join([*POLICIES, *PEERS])}")
    return name


def _check_peers(policies: Sequence[str], config: ClusterConfig) -> None:
    peers = [policy for policy in policies if policy in PEERS]
    if peers and not can_replay(config):
        raise ConfigError(
            f"--policies = {','.join(peers)}: these need `rank.decode: null`, `routers: 1` and a `feed` "
            "without delays"
        )


if __name__ == "__main__":
    main()
