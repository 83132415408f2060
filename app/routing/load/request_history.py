"""What happened to requests lately, for messages about them that arrive late."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import inf
from typing import Final

MAX_REMEMBERED: Final = 10_000
"""Requests: more than all routers send to ranks while a message is on its way."""


@dataclass(slots=True)
class _Past:
    last_choice_seq: float = -inf
    acknowledged_by: int | None = None


class RequestHistory:
    """The last requests, the oldest of which are forgotten when there are too many."""

    def __init__(self) -> None:
        self._past: OrderedDict[str, _Past] = OrderedDict()

    def record_choice(self, request_id: str, choice_seq: int) -> None:
        """A router has made this choice for the request."""
        past = self._of(request_id)
        past.last_choice_seq = max(past.last_choice_seq, choice_seq)

    def record_acknowledged(self, request_id: str, rank: int) -> None:
        """`rank` counts the request from now on."""
        self._of(request_id).acknowledged_by = rank

    def record_released(self, request_id: str) -> None:
        """No further choice is made for the request."""
        self._of(request_id).last_choice_seq = inf

    def is_overtaken(self, request_id: str, choice_seq: int) -> bool:
        """Whether a later choice has been made, or the request was released."""
        past = self._past.get(request_id)
        return past is not None and past.last_choice_seq > choice_seq

    def is_settled(self, request_id: str, choice_seq: int, rank: int) -> bool:
        """Whether this choice, of `rank`, changes nothing: known, overtaken, or acknowledged already."""
        past = self._past.get(request_id)
        return past is not None and (past.last_choice_seq >= choice_seq or past.acknowledged_by == rank)

    def _of(self, request_id: str) -> _Past:
        past = self._past.get(request_id)
        if past is None:
            past = self._past[request_id] = _Past()
            if len(self._past) > MAX_REMEMBERED:
                self._past.popitem(last=False)
        return past
