"""What a decision costs as ranks grow: `python -m benchmarks.routing_scale --ranks 8,64,256,1024`.

Simulates made-up requests that share prefixes, at the same load per rank, on the preset `delayed`: once for
the time, and once more with memory traced, which is slow. The router's memory is what `app/routing` holds
after the last request: index, load book, reservations. Progress goes to stderr; the last line of stdout is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from tqdm import tqdm

from app.simulation.config import DELAYED, ClusterConfig
from app.simulation.simulator import simulate
from app.simulation.traces.shared_prefixes import SharedPrefixes
from benchmarks.arguments import list_of, positive

REQUESTS_PER_S = 2.0
"""For each rank."""


@dataclass(frozen=True)
class Scale:
    """One number of ranks.

    Attributes:
        ranks: how many.
        choose_us: microseconds of one decision, on average: looking up, costing every rank, reserving.
        requests_per_s: requests that the simulator handled per second of real time.
        router_bytes: what the router's index, load book and reservations hold in the end.
    """

    ranks: int
    choose_us: float
    requests_per_s: float
    router_bytes: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing_scale", description=__doc__)
    number = positive(int)
    parser.add_argument("--ranks", type=list_of(number), default=[8, 64, 256, 1024])
    parser.add_argument("--requests", type=number, default=20_000, help="for each number of ranks")
    parser.add_argument("--traced-requests", type=number, default=5_000, help="of them, with memory traced")
    options = parser.parse_args(arguments)
    scales = []
    with tqdm(total=len(options.ranks) * (options.requests + options.traced_requests)) as progress:
        for ranks in options.ranks:
            scales.append(measure(ranks, options.requests, options.traced_requests, progress.update))
            progress.write(_row(scales[-1]), file=sys.stderr)
    print(json.dumps({"scales": [asdict(each) for each in scales]}))


def measure(ranks: int, num_requests: int, num_traced: int, on_request: Callable[[], object]) -> Scale:
    """One number of ranks."""
    config = DELAYED.model_copy(update={"ranks": ranks})
    requests = SharedPrefixes(num_requests=num_requests, requests_per_s=REQUESTS_PER_S * ranks)
    figures = simulate(config, requests.requests(), "predicted_ttft", on_request).figures()
    traced = requests.model_copy(update={"num_requests": num_traced})
    router_bytes = _router_bytes(config, traced, on_request)
    return Scale(ranks, figures.choose_us, figures.requests_per_s, router_bytes)


def _router_bytes(config: ClusterConfig, requests: SharedPrefixes, on_request: Callable[[], object]) -> int:
    left, held = requests.num_requests, 0

    def record() -> None:
        nonlocal left, held
        left -= 1
        on_request()
        if not left:
            routing = tracemalloc.Filter(True, "*/app/routing/*")
            traces = tracemalloc.take_snapshot().filter_traces([routing]).traces
            held = sum(trace.size for trace in traces)

    tracemalloc.start()
    simulate(config, requests.requests(), "predicted_ttft", record)
    tracemalloc.stop()
    return held


def _row(scale: Scale) -> str:
    return (
        f"{scale.ranks:>5} ranks: {scale.choose_us:6.0f} us a decision, "
        f"{scale.requests_per_s:6.0f} requests/s, router {scale.router_bytes / 2**20:6.1f} MiB"
    )


if __name__ == "__main__":
    main()
