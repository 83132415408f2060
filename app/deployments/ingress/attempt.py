"""What becomes of a request's calls to ranks, for the routers that decided on them."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.routing.decisions.decision_log import Outcome


class Attempt:
    """One call of a request to a rank, from now on.

    Args:
        note: told of its outcome as it goes.
        request_id: the request's.
        rank: which rank is called.
    """

    def __init__(self, note: Callable[[Outcome], None], request_id: str, rank: int) -> None:
        self._note = note
        self._request_id = request_id
        self._rank = rank
        self._called_at = time.monotonic()
        self._ttft_s: float | None = None

    def answers(self) -> None:
        """The first token is there."""
        self._ttft_s = time.monotonic() - self._called_at
        self.end("answering")

    def end(self, result: str) -> None:
        """It ended like this; see `Outcome`."""
        self._note(Outcome(self._request_id, self._rank, result, self._ttft_s))
