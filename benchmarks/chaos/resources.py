"""What long-living processes hold, again and again, and whether it grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.chaos.processes import long_living

SAMPLE_EVERY_S = 2.0
WARM_UP_S = 120.0
"""A process's first seconds aren't judged: caches, pools and logs of bounded length fill."""
JUDGED_S = 300.0
"""A process is judged by at least so many seconds: over less, noise looks like growth."""
BOUNDS: Mapping[str, float] = {"memory_kib": 256.0, "file_descriptors": 0.5, "threads": 0.5}
"""Growth per minute beyond which a process leaks, after its uncertainty is taken off."""
SIGMAS = 3.0


@dataclass(frozen=True)
class Sample:
    """What a process holds at one time.

    Attributes:
        at: monotonic seconds.
        memory_kib: anonymous memory that is resident.
        file_descriptors, threads: how many.
    """

    at: float
    memory_kib: int
    file_descriptors: int
    threads: int


@dataclass(frozen=True)
class Slope:
    """A straight line's slope through samples, by least squares.

    Attributes:
        per_minute: growth.
        error: its standard error, of windows that are averaged first: samples in a row aren't independent.
    """

    per_minute: float
    error: float

    def exceeds(self, bound: float) -> bool:
        """Whether it is surely larger than `bound`."""
        return self.per_minute - SIGMAS * self.error > bound


def slope(at_s: Sequence[float], values: Sequence[float], windows: int = 20) -> Slope:
    """The slope of `values` over the times `at_s`, of at least three samples at different times."""
    groups = np.array_split(np.arange(len(at_s)), min(windows, len(at_s)))
    x = np.array([np.mean([at_s[place] for place in group]) for group in groups]) / 60
    y = np.array([np.mean([values[place] for place in group]) for group in groups])
    spread = float(np.sum((x - x.mean()) ** 2))
    gradient = float(np.sum((x - x.mean()) * (y - y.mean()))) / spread
    rest = y - y.mean() - gradient * (x - x.mean())
    error = float(np.sqrt(np.sum(rest**2) / max(1, len(x) - 2) / spread))
    return Slope(gradient, error)


@dataclass(frozen=True)
class Growth:
    """How one process grew.

    Attributes:
        kind: what it is.
        seconds: for which it was watched, after its warm-up and the last fault.
        slopes: of memory_kib, file_descriptors and threads; empty when it lived too shortly to be judged.
        last: the last sample.
    """

    kind: str
    seconds: float
    slopes: Mapping[str, Slope]
    last: Sample

    def violations(self) -> list[str]:
        """A line for each thing that grows."""
        return [
            f"{self.kind}: {name} +{self.slopes[name].per_minute:.2f} a minute for {self.seconds:.0f} s"
            for name, bound in BOUNDS.items()
            if name in self.slopes and self.slopes[name].exceeds(bound)
        ]


def growth(kind: str, samples: Sequence[Sample], since: float, judged_s: float = JUDGED_S) -> Growth | None:
    """How a process grew since a time, after its warm-up; None: it was hardly there."""
    begin = max(since, samples[0].at + WARM_UP_S) if samples else since
    judged = [sample for sample in samples if sample.at >= begin]
    if len(judged) < 3:
        return None
    seconds = judged[-1].at - judged[0].at
    at_s = [sample.at for sample in judged]
    names = BOUNDS if seconds >= judged_s else ()
    slopes = {name: slope(at_s, [getattr(sample, name) for sample in judged]) for name in names}
    return Growth(kind, seconds, slopes, judged[-1])


class Watch:
    """Takes samples of all processes of this process's graph."""

    def __init__(self) -> None:
        self._samples: dict[tuple[int, str], list[Sample]] = {}

    async def run(self) -> None:
        """Take samples until cancelled."""
        while True:
            await asyncio.to_thread(self.sample)
            await asyncio.sleep(SAMPLE_EVERY_S)

    def sample(self) -> None:
        """Take one sample of each process."""
        for pid, kind in long_living().items():
            taken = take_sample(pid)
            if taken is not None:
                self._samples.setdefault((pid, kind), []).append(taken)

    def growths(self, since: float) -> list[Growth]:
        """How every process that was there at the end grew since a time."""
        last = max((samples[-1].at for samples in self._samples.values()), default=0.0)
        found = [
            growth(f"{kind} {pid}", samples, since)
            for (pid, kind), samples in self._samples.items()
            if samples[-1].at > last - 3 * SAMPLE_EVERY_S
        ]
        return [each for each in found if each is not None]


def take_sample(pid: int) -> Sample | None:
    """What a process holds now; None: it has gone."""
    folder = Path(f"/proc/{pid}")
    try:
        status = dict(
            line.split(":", 1)
            for line in (folder / "status").read_text(errors="replace").splitlines()
            if ":" in line
        )
        num_files = len(list((folder / "fd").iterdir()))
    except OSError:
        return None
    if "RssAnon" not in status:  # a zombie
        return None
    memory_kib = int(status["RssAnon"].split()[0])
    return Sample(time.monotonic(), memory_kib, num_files, int(status["Threads"]))
