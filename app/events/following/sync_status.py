"""How well a rank's cache is known: what a subscriber reports of itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger(__name__)

Trust = Literal["exact", "partial", "syncing", "stale"]
"""Whether a router knows a rank's cache, a part of it for sure, is finding out, or can't know."""


@dataclass(frozen=True, slots=True)
class SyncStatus:
    """How well a rank's cache is known.

    Attributes:
        state: `exact`: the sink holds what the rank's cache held after batch `applied_seq`. `syncing`: it
            will soon. `stale`: the last attempt to fill it failed; it holds nothing but what the next one
            fills it with.
        reason: why the state isn't exact, or why it last was not.
        since: when this state began, Unix time in seconds.
        applied_seq: the last batch that the sink holds, -1 for none.
        gaps: times that batches were missing.
        resyncs: snapshots loaded after the first.
        bad_messages: messages that could not be read.
    """

    state: Trust
    reason: str
    since: float
    applied_seq: int
    gaps: int
    resyncs: int
    bad_messages: int


def error_text(error: Exception) -> str:
    """An error for a `reason`: its text, or its name if it has none, as a timeout."""
    return str(error) or type(error).__name__


class SyncRecord:
    """The part of a status that a subscriber writes down as it goes; changes of state are logged.

    Args:
        rank: whose cache it is about.
        on_state: called with each new state, the first excepted, which is `syncing`.

    Attributes:
        gaps: times that batches were missing.
        snapshots: how many were loaded.
    """

    def __init__(self, rank: int, on_state: Callable[[Trust], object]) -> None:
        self.state: Trust = "syncing"
        self.gaps = 0
        self.snapshots = 0
        self._rank = rank
        self._on_state = on_state
        self._reason = ""
        self._since = time.time()

    def set(self, state: Trust, reason: str) -> None:
        """From now on `state`, because of `reason`."""
        before, self.state, self._reason = self.state, state, reason
        if state != before:
            self._since = time.time()
            level = logging.WARNING if state == "stale" else logging.INFO
            logger.log(level, "rank %d's cache: %s (%s)", self._rank, state, reason)
            self._on_state(state)

    def status(self, applied_seq: int, bad_messages: int) -> SyncStatus:
        """The whole status."""
        return SyncStatus(
            state=self.state,
            reason=self._reason,
            since=self._since,
            applied_seq=applied_seq,
            gaps=self.gaps,
            resyncs=max(0, self.snapshots - 1),
            bad_messages=bad_messages,
        )
