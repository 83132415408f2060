"""Requests in the order in which they are served."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from app.engine.torch.request import Request

_order = attrgetter("order")


class RequestQueue:
    """Requests by `Request.order`: lower priority first, then earlier arrival.

    A sorted list: the ends and iteration cost nothing, adding and removing take a bisection.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    @property
    def first(self) -> Request:
        """The next to serve. There must be one."""
        return self._requests[0]

    @property
    def last(self) -> Request:
        """The one that all others go before. There must be one."""
        return self._requests[-1]

    def add(self, request: Request) -> None:
        """Put `request` in its place."""
        insort(self._requests, request, key=_order)

    def remove(self, request: Request) -> None:
        """Take `request`, which is here, out."""
        index = bisect_left(self._requests, request.order, key=_order)
        assert self._requests[index] is request, f"{request.request_id} is not in its place"
        del self._requests[index]
