"""A request as a trace has it: when, how long, and which blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

FIRST_TURN: Final = "first turn"
LATER_TURN: Final = "later turn"
"""Classes of requests that follow from their sessions, where a trace names no others."""


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One request of a trace.

    Attributes:
        arrival_s: seconds since the trace's start.
        num_tokens: the prompt's length, at least 1.
        output_tokens: tokens that are generated, at least 1.
        block_ids: names of the prompt's blocks, ceil(num_tokens / block size) of them, each below 2^32. Equal
            leading names are equal leading blocks.
        session_id: the session that the client named, if it did.
        request_class: what results are told apart by, if the trace says so.
    """

    arrival_s: float
    num_tokens: int
    output_tokens: int
    block_ids: Sequence[int]
    session_id: str | None = None
    request_class: str | None = None


def speed_up(requests: Iterable[SimulatedRequest], factor: float) -> Iterator[SimulatedRequest]:
    """The same requests, arriving `factor` times as fast."""
    for each in requests:
        yield replace(each, arrival_s=each.arrival_s / factor)
