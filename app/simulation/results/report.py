"""The answer to a what-if, and how it reads in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.simulation.results.outcome import Figures

BAR_WIDTH = 50


@dataclass(frozen=True)
class WhatIf:
    """What was tried, and the answer.

    Attributes:
        tried: figures by number of ranks, ascending.
        p99_s: the wanted 99th percentile in seconds.
        ranks: the smallest number that keeps to it, of those tried; None when the largest doesn't.
    """

    tried: Mapping[int, Figures]
    p99_s: float
    ranks: int | None


def report(answer: WhatIf) -> str:
    """The tables, the plot and the answer, for people."""
    sized = answer.ranks or max(answer.tried)
    classes = class_table(answer.tried[sized])
    if classes:
        classes = ["", _number(sized) + ", by class of request", *classes]
    return "\n".join([*_table(answer.tried), *classes, "", *_plot(answer), "", _sentence(answer)])


def class_table(figures: Figures) -> list[str]:
    """A line for each class of requests; none where all are of one class."""
    if len(figures.classes) < 2:
        return []
    width = max(map(len, figures.classes))
    head = f"{'class':<{width}}{'requests':>10}{'hit rate':>10}{'mean s':>10}{'p50 s':>10}{'p90 s':>10}"
    rows = [f"{head}{'p99 s':>10}"]
    for name, each in figures.classes.items():
        rows.append(
            f"{name:<{width}}{each.num_requests:>10}{each.hit_rate:>10.1%}{each.ttft_mean_s:>10.3f}"
            f"{each.ttft_p50_s:>10.3f}{each.ttft_p90_s:>10.3f}{each.ttft_p99_s:>10.3f}"
        )
    return rows


def _table(tried: Mapping[int, Figures]) -> list[str]:
    rows = [f"{'ranks':>6}{'hit rate':>10}{'mean s':>10}{'p50 s':>10}{'p90 s':>10}{'p99 s':>10}"]
    for ranks, each in tried.items():
        rows.append(
            f"{ranks:>6}{each.hit_rate:>10.1%}{each.ttft_mean_s:>10.3f}{each.ttft_p50_s:>10.3f}"
            f"{each.ttft_p90_s:>10.3f}{each.ttft_p99_s:>10.3f}"
        )
    return rows


def _plot(answer: WhatIf) -> list[str]:
    """A bar a line, three times the wanted p99 (`|`) at full width; `>` stands for what is beyond it."""
    mark = BAR_WIDTH // 3
    rows = []
    for ranks, each in answer.tried.items():
        length = round(each.ttft_p99_s / answer.p99_s * mark)
        bar = ("#" * min(length, BAR_WIDTH)).ljust(BAR_WIDTH)
        bar = bar[:mark] + "|" + bar[mark:] + (">" if length > BAR_WIDTH else "")
        rows.append(f"{ranks:>6} {bar.rstrip()}")
    return [f"p99; | is {answer.p99_s:g} s", *rows]


def _sentence(answer: WhatIf) -> str:
    if answer.ranks is None:
        most = max(answer.tried)
        return (
            f"{most} ranks are not enough for a p99 of {answer.p99_s:g} s: "
            f"theirs is {answer.tried[most].ttft_p99_s:.3f} s"
        )
    p99_s = answer.tried[answer.ranks].ttft_p99_s
    verb = "is" if answer.ranks == 1 else "are"
    return f"{_number(answer.ranks)} {verb} enough for a p99 of {answer.p99_s:g} s: {p99_s:.3f} s"


def _number(ranks: int) -> str:
    return "1 rank" if ranks == 1 else f"{ranks} ranks"
