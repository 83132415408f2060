"""How well a foreign publisher is followed: what a feed reports of itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

from app.engine.relay.relay import RelayCounters

logger = logging.getLogger(__name__)

FeedState = Literal["connecting", "whole", "partial", "down"]
"""`connecting`: on the way. `whole`: all that the worker's cache holds is known. `partial`: what is held is
true, but more may be there, as the worker's early events are gone. `down`: no publisher there; tried again.
"""


class FeedAddress(Protocol):
    """Where one worker rank publishes: a `PublisherAddress`, or a `ForeignPublisher`."""

    @property
    def event_endpoint(self) -> str:
        """What a SUB socket connects to."""
        ...

    @property
    def replay_endpoint(self) -> str | None:
        """What a DEALER socket connects to; None: there is no replay."""
        ...

    @property
    def topic(self) -> str:
        """The first frame of its batches."""
        ...


@dataclass(frozen=True, slots=True)
class ForeignPublisher:
    """A `FeedAddress` by ZMQ's endpoints, as vLLM's `/kv_event_sources` gives them."""

    event_endpoint: str
    replay_endpoint: str | None
    topic: str = ""


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """A feed now.

    Attributes:
        state: see `FeedState`.
        reason: why this state.
        since: when it began, Unix time in seconds.
        applied_seq: the last batch that was applied; -1: none.
        gaps: times that batches were missing.
        adoptions: times that the feed began again.
        bad_messages: messages that weren't a batch.
        idle_s: seconds since the last batch was applied; None: none was.
        relay: what is held and was seen.
    """

    state: FeedState
    reason: str
    since: float
    applied_seq: int
    gaps: int
    adoptions: int
    bad_messages: int
    idle_s: float | None
    relay: RelayCounters

    def as_json(self) -> dict[str, Any]:
        """For `EngineStatus.foreign_events`: numbers, text, and mappings of these."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


class FeedRecord:
    """The state that a feed writes down as it goes; changes are logged and passed on."""

    def __init__(self, name: str, on_state: Callable[[FeedState], object]) -> None:
        self.state: FeedState = "connecting"
        self.reason = "first connection"
        self.since = time.time()
        self._name = name
        self._on_state = on_state

    def set(self, state: FeedState, reason: str) -> None:
        """From now on `state`, because of `reason`."""
        before, self.state, self.reason = self.state, state, reason
        if state != before:
            self.since = time.time()
            level = logging.INFO if state in ("connecting", "whole") else logging.WARNING
            logger.log(level, "%s: cache %s (%s)", self._name, state, reason)
            self._on_state(state)
