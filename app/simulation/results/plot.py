"""A picture of a what-if: times to first token over the number of ranks, as SVG or PNG.

Both axes are logarithmic, as doubling either means the same anywhere on them. Too few ranks make queues of
hours, beside which the wanted time would be a line at the bottom: so the axis ends at ten times that, and
what is beyond stands in a grey strip above it, as triangles with their values.

matplotlib draws, if it is there: it is the extra `plot`, and nothing else of the simulation needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from app.errors import ConfigError
from app.simulation.results.outcome import Figures
from app.simulation.results.report import WhatIf

FORMATS: Final = (".svg", ".png")
BEYOND: Final = 10
"""The time axis ends at this many times the wanted p99."""
_STRIP: Final = 0.14
"""The part of the axis, at its upper end, where what is beyond it is drawn."""
_LABEL_DISTANCE: Final = 1.07
"""Numbers of ranks closer than this factor would be written over each other."""
_WANTED: Final = "#cb181d"


@dataclass(frozen=True)
class _Line:
    """A percentile of the times to first token over the numbers of ranks; `time_s` takes it from figures."""

    label: str
    color: str
    time_s: Callable[[Figures], float]


_LINES: Final = (
    _Line("p50", "#6baed6", lambda figures: figures.ttft_p50_s),
    _Line("p90", "#2171b5", lambda figures: figures.ttft_p90_s),
    _Line("p99", "#08306b", lambda figures: figures.ttft_p99_s),
)


class Plot:
    """A file that a what-if will be drawn to.

    Made before the simulation, which may take minutes, so that what would keep it from being drawn is known.

    Args:
        file: its ending says the format.

    Raises:
        ConfigError: another ending, a folder that doesn't exist, or no matplotlib.
    """

    def __init__(self, file: Path) -> None:
        if file.suffix.lower() not in FORMATS:
            raise ConfigError(f"--plot = {str(file)!r}: its ending must be {' or '.join(FORMATS)}")
        if not file.parent.is_dir():
            raise ConfigError(f"--plot = {str(file)!r}: there is no folder {str(file.parent)!r}")
        try:
            self._figure = import_module("matplotlib.figure").Figure(figsize=(8, 5), layout="constrained")
            self._rc_context = import_module("matplotlib").rc_context
        except ImportError as error:
            raise ConfigError(f"--plot needs the extra `plot` (matplotlib): {error}") from None
        self._file = file

    def draw(self, answer: WhatIf, title: str) -> None:
        """Draw `answer` and write the file. Raises `ConfigError` if it can't be written."""
        axes = self._figure.add_subplot()
        highest = _set_axes(axes, answer)
        for line in _LINES:
            _draw_line(axes, answer, line, highest)
        axes.axhline(answer.p99_s, color=_WANTED, linestyle="--", label=f"wanted p99: {answer.p99_s:g} s")
        if answer.ranks is not None:
            axes.axvline(answer.ranks, color=_WANTED, linestyle=":", label=f"enough: {_count(answer.ranks)}")
        axes.set_title(title if answer.ranks is not None else f"{title}: not enough ranks")
        axes.legend(loc="best")
        self._save()

    def _save(self) -> None:
        is_svg = self._file.suffix.lower() == ".svg"
        try:
            # The same answer gives the same file, with its words as text.
            with self._rc_context({"svg.hashsalt": "kvbeacon", "svg.fonttype": "none"}):
                self._figure.savefig(self._file, dpi=150, metadata={"Date": None} if is_svg else None)
        except OSError as error:
            raise ConfigError(f"--plot = {str(self._file)!r}: {error.strerror or error}") from None


def _set_axes(axes: Any, answer: WhatIf) -> float:
    """Scales, limits and labels; returns where the strip begins, in seconds."""
    ranks = list(answer.tried)
    times = [line.time_s(each) for each in answer.tried.values() for line in _LINES]
    lowest = min(*times, answer.p99_s) / 1.5
    end = BEYOND * answer.p99_s
    is_beyond = max(times) > end
    highest = end if is_beyond else max(*times, answer.p99_s) * 1.5
    top = lowest * (highest / lowest) ** (1 / (1 - _STRIP)) if is_beyond else highest
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    # On the right there is room for what is written beside a triangle.
    axes.set_xlim(ranks[0] / 1.15, ranks[-1] * (ranks[-1] / ranks[0]) ** 0.15 * 1.1)
    axes.set_ylim(lowest, top)
    if is_beyond:  # the strip hides the lines, which lead to no place in it
        axes.axhspan(highest, top, color="#eeeeee", zorder=2.5, label="▲ beyond the axis")
    labelled = _apart(ranks, _LABEL_DISTANCE, answer.ranks)
    axes.set_xticks(labelled, labels=[str(each) for each in labelled])
    axes.set_xticks(ranks, minor=True, labels=[""] * len(ranks))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("ranks")
    axes.set_ylabel("time to first token, seconds")
    axes.grid(visible=True, color="#dddddd")
    return highest


def _draw_line(axes: Any, answer: WhatIf, line: _Line, highest: float) -> None:
    """One percentile: dots where it was tried; in the strip, with its value, what is beyond it."""
    times = {ranks: line.time_s(each) for ranks, each in answer.tried.items()}
    axes.plot(list(times), list(times.values()), color=line.color, marker="o", label=line.label)
    beyond = {ranks: time for ranks, time in times.items() if time > highest}
    if not beyond:
        return
    # Each percentile has a height of its own in the strip, as a part of the axis; p99 is on top.
    height = 1 - _STRIP * (len(_LINES) - _LINES.index(line) - 0.5) / len(_LINES)
    strip = axes.get_xaxis_transform()
    axes.plot(list(beyond), [height] * len(beyond), "^", color=line.color, transform=strip, zorder=3)
    width = (max(times) / min(times)) ** 0.12  # of the words, as a factor on the axis
    for ranks in _apart(list(beyond)[::-1], width):
        text = f"  {line.label}: {beyond[ranks]:,.0f} s"
        axes.text(ranks, height, text, transform=strip, va="center", fontsize="x-small", zorder=3)


def _apart(ranks: Sequence[int], distance: float, first: int | None = None) -> list[int]:
    """The numbers that have room for a label, ascending: `first`, and in turn each far enough from those."""
    chosen = [first] if first is not None else []
    for each in ranks:
        if all(max(each / other, other / each) >= distance for other in chosen):
            chosen.append(each)
    return sorted(chosen)


def _count(ranks: int) -> str:
    return "1 rank" if ranks == 1 else f"{ranks} ranks"
