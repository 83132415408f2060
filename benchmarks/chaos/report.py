"""What is printed: the plan before a run, and its report after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.chaos.faults import Happened
from benchmarks.chaos.plan import Fault, num_overlapping
from benchmarks.chaos.resources import Growth
from benchmarks.chaos.run import Finding, intervals
from benchmarks.machine import machine

Json = dict[str, Any]


def plan_lines(plan: Sequence[Fault]) -> Iterator[str]:
    """The plan, a line for each fault."""
    for fault in plan:
        more = f" for {fault.lasts} stall timeouts" if fault.lasts else ""
        more += f" to {fault.dp_size}" if fault.dp_size else ""
        yield f"plan: {fault.at_s:7.1f} s  {fault.kind}{more}"


def as_json(finding: Finding) -> Json:
    """The report, as JSON: what must be so is under `violations` when it isn't."""
    ledger = finding.ledger
    return {
        "requests": ledger.num_requests,
        "ended": dict(ledger.counts),
        "causes": {ended: dict(causes) for ended, causes in ledger.causes.items()},
        "examples": ledger.examples,
        "resumed": ledger.num_resumed,
        "longest_pause_s": _longest(ledger.longest_pause),
        "longest_first_token_s": _longest(ledger.longest_first_token),
        "longest_request_s": _longest(ledger.longest_request),
        "faults": _faults(finding.happened),
        "overlapping_faults": num_overlapping(intervals(finding.happened)),
        "audits_equal": finding.quiet.is_audited,
        "seconds_until_zero_load": finding.quiet.seconds_until_zero,
        "growth_per_minute": {each.kind: _growth(each) for each in finding.growths},
        "machine": machine(),
        "violations": list(finding.violations),
    }


def _longest(longest: tuple[float, str]) -> Json:
    seconds, name = longest
    return {"seconds": round(seconds, 2), "request": name}


def _faults(happened: Sequence[Happened]) -> Json:
    """By kind: how many happened, how many were left out, and the longest time to recover."""
    by_kind: dict[str, list[Happened]] = {}
    for each in happened:
        by_kind.setdefault(each.fault.kind, []).append(each)
    return {
        kind: {
            "happened": sum(bool(each.what) for each in those),
            "left_out": sum(bool(each.skipped) for each in those),
            "longest_s": round(max(each.ended_at - each.began_at if each.what else 0.0 for each in those), 1),
        }
        for kind, those in sorted(by_kind.items())
    }


def _growth(growth: Growth) -> Json:
    slopes = {name: [round(each.per_minute, 2), round(each.error, 2)] for name, each in growth.slopes.items()}
    last = growth.last
    now = {"memory_kib": last.memory_kib, "file_descriptors": last.file_descriptors, "threads": last.threads}
    return {"seconds": round(growth.seconds), "slope_and_error": slopes, "last": now}
