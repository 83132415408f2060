"""Whether anything is lost while everything breaks: `python -m benchmarks.chaos --minutes 30 --seed 1`.

A real graph of a tiny random model in float32, under traffic of every kind. Ranks, routers, ingresses and
Serve's controller are killed (SIGKILL), ranks stopped (SIGSTOP) and hung, and the graph is deployed again,
resized, and deployed wrongly; several of these at once. Comparable requests were answered before: each answer
must have the same tokens again. No request may fail that its own ingress outlives; afterwards every router's
index must be equal to the caches, no load may be left, and no process may have grown.

Progress goes to stderr. The last line of stdout is one JSON object. Exit status 1: a violation.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.arguments import list_of, positive
from benchmarks.chaos.graph import GraphError
from benchmarks.chaos.plan import KINDS, FaultKind, make_plan
from benchmarks.chaos.report import as_json, plan_lines
from benchmarks.chaos.run import Options, run
from benchmarks.chaos.traffic import NoAnswerError


def main() -> None:
    """Parse, run, print."""
    given = _parser().parse_args()
    started = time.monotonic()

    def said(line: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {line}", file=sys.stderr, flush=True)

    seconds = 60.0 * given.minutes
    sizes = [given.ranks, *(size for size in range(1, given.max_ranks + 1) if size != given.ranks)]
    plan = make_plan(given.seed, seconds, sizes, given.faults)
    for line in plan_lines(plan):
        print(line, file=sys.stderr)
    options = Options(
        seconds=seconds,
        seed=given.seed,
        plan=plan,
        ranks=given.ranks,
        routers=given.routers,
        ingresses=given.ingresses,
        max_ranks=given.max_ranks,
        clients=given.clients,
        comparable_rounds=given.comparable,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="kvbeacon-chaos-") as folder:
            finding = run(options, Path(folder), said)
    except (GraphError, NoAnswerError) as error:
        sys.exit(f"benchmarks.chaos failed: {error}")
    print(json.dumps({"options": vars(given), **as_json(finding)}))
    sys.exit(1 if finding.violations else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--minutes", type=positive(float), default=30.0, help="of traffic")
    parser.add_argument("--seed", type=int, default=1, help="of faults and requests")
    parser.add_argument("--ranks", type=positive(int), default=3, help="at the beginning")
    parser.add_argument("--max-ranks", type=positive(int), default=4, help="that it is resized to")
    parser.add_argument("--routers", type=positive(int), default=2)
    parser.add_argument("--ingresses", type=positive(int), default=2)
    parser.add_argument("--clients", type=positive(int), default=8, help="requests in flight")
    parser.add_argument(
        "--comparable", type=positive(int), default=3, help="comparable requests of each kind"
    )
    parser.add_argument(
        "--faults",
        type=list_of(_kind),
        default=list(KINDS),
        help="which may happen, separated by commas: " + ", ".join(KINDS),
    )
    return parser


def _kind(text: str) -> FaultKind:
    for kind in KINDS:
        if kind == text:
            return kind
    raise ValueError(text)


if __name__ == "__main__":
    main()
