"""One replica that a router follows: writes its events into the index and its load into the load book."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from app.events.curve import KeyPair
from app.events.following.subscriber import RankSubscriber
from app.events.following.sync_status import SyncStatus, Trust
from app.events.publisher_info import PublisherAddress, PublisherInfo
from app.events.schema import LoadStat
from app.events.snapshot import CacheSnapshot
from app.routing.core import RoutingCore
from app.routing.index.index_writer import IndexWriter, Journal
from app.routing.tracking.description import Absence, RankDescription

logger = logging.getLogger(__name__)

LOAD_LATE_S = 2.0
"""Ranks report their load every second, but for an engine in a long step, which then still answers."""


class FollowedRank:
    """Its last description and, if it publishes, its subscriber.

    A replica that says that it is unavailable is followed on: its blocks are what its events say, so they
    are there when it can take requests again, or gone if it has published that. Only its load is forgotten.
    So is one that is suspect, because it doesn't answer: it may hang, be stopped or be cut off.

    Once detached it changes nothing any more, whatever its subscriber was still working on: the number may
    be another replica's by then.

    Args:
        description: the replica's first.
        core: written to: its index, load, reservations and membership.
        fetch_snapshot: asks the replica for its cache's content; may fail, and is then tried again.
        curve_keys: the router's own, for ranks that encrypt.

    Attributes:
        description: what the replica last said of itself.
    """

    def __init__(
        self,
        description: RankDescription,
        core: RoutingCore,
        fetch_snapshot: Callable[[], Awaitable[CacheSnapshot]],
        curve_keys: KeyPair | None = None,
    ) -> None:
        self.description = description
        self._answered_at = time.monotonic()
        self._reported_at: float | None = None
        """When its last load report came by itself; None: none ever did."""
        self._suspicion: str | None = None
        self._writer = IndexWriter(core.index, description.rank)
        self._core = core
        self._since = time.time()
        self._wholeness_since = self._since
        self._last_partial_reason = description.partial_cache
        self._is_detached = False
        self._load_came_by_itself = False
        self._subscriber: RankSubscriber | None = None
        self._acknowledges = False
        self._reserved_at_last_poll: list[str] = []
        publisher = description.publisher
        if publisher is not None and publisher.is_publishing:
            self._subscriber = RankSubscriber(
                publisher,
                self._writer,
                fetch_snapshot=fetch_snapshot,
                on_load=self._on_load,
                on_acknowledged=self._on_acknowledged,
                on_state=self._on_state,
                curve_keys=curve_keys,
            )
            self._subscriber.start()
            self._acknowledges = publisher.address.load_port is not None
        self._set_membership(self.status.state)

    @property
    def status(self) -> SyncStatus:
        """How well the rank's cache is known; stale for good when it publishes nothing.

        A subscriber knows only what was published: whether that is all is what the rank says of itself.
        """
        if self._subscriber is None:
            return SyncStatus("stale", "no events published", self._since, -1, 0, 0, 0)
        status = self._subscriber.status
        trust = self._trust(status.state)
        if trust == "partial" or (trust == "exact" and self._wholeness_since > status.since):
            reason = self._last_partial_reason or status.reason
            since = max(status.since, self._wholeness_since)
            return replace(status, state=trust, reason=reason, since=since)
        return status

    @property
    def unavailable(self) -> str | None:
        """Why it can take no requests now, by its own word or because it gives none; None: it can."""
        return self._suspicion or self.description.unavailable

    @property
    def is_publishing(self) -> bool:
        """Whether the replica publishes events to follow."""
        return self._subscriber is not None

    def journal(self) -> AbstractContextManager[Journal]:
        """The batches that are applied from here on, until the context's end."""
        return self._writer.journal()

    def is_same(self, description: RankDescription) -> bool:
        """Whether `description` is of the replica and publisher that are followed here."""
        own = self.description
        return (own.replica_id, _identity(own.publisher)) == (
            description.replica_id,
            _identity(description.publisher),
        )

    def update(self, description: RankDescription) -> None:
        """Take over a later description of the same replica."""
        was, was_unavailable = self.description, self.unavailable
        self.description, self._suspicion, self._answered_at = description, None, time.monotonic()
        self._update_wholeness(was.partial_cache)
        if self._subscriber is not None and description.publisher is not None:
            self._subscriber.observe(description.publisher.state.epoch, description.publisher.state.last_seq)
        self._update_availability(was_unavailable)
        self._set_membership(self.status.state)
        if description.unavailable is None:
            self._update_load(description.load)

    def miss(self, absence: Absence, timeout_s: float, *, is_last: bool) -> None:
        """The replica was asked to describe itself and didn't.

        It is suspect at once if it has failed or Ray doesn't have it. Otherwise it is once it has been silent
        for `timeout_s`, or at once if its load reports stay out too: then neither of two ways to it works.
        One slow answer is no reason for a 503, though, so the last rank that can take requests gets its time
        in any case.
        """
        now, before = time.monotonic(), self.unavailable
        silent_s = now - self._answered_at
        late_s = None if self._reported_at is None else now - self._reported_at
        is_late = late_s is not None and late_s > LOAD_LATE_S
        if absence.kind in ("failed", "gone"):
            self._suspicion = absence.reason
        elif silent_s >= timeout_s or self._suspicion is not None or (is_late and not is_last):
            said = absence.reason or "no answer"
            reports = f", no load report for {late_s:.0f} s" if is_late else ""
            self._suspicion = f"{said} for {silent_s:.0f} s{reports}"
        else:
            return
        self._update_availability(before)
        self._set_membership(self.status.state)

    def detach(self) -> asyncio.Task[None] | None:
        """Stop writing at once; returns the subscriber's closing, if there is one."""
        self._is_detached = True
        self._writer.detach()
        return asyncio.create_task(self._subscriber.close()) if self._subscriber is not None else None

    def _on_load(self, stat: LoadStat) -> None:
        self._reported_at = time.monotonic()
        if not self._is_detached and self.unavailable is None:
            self._load_came_by_itself = True
            self._core.load.report(self.description.rank, stat, time.monotonic())

    def _on_acknowledged(self, request_ids: Sequence[str]) -> None:
        if not self._is_detached:
            self._core.reservations.acknowledge(self.description.rank, request_ids)

    def _on_state(self, state: Trust) -> None:
        if not self._is_detached:
            self._set_membership(self._trust(state))

    def _trust(self, followed: Trust) -> Trust:
        """Of what is followed so well, with what the rank says of its cache."""
        is_partial = followed == "exact" and self.description.partial_cache is not None
        return "partial" if is_partial else followed

    def _set_membership(self, trust: Trust) -> None:
        rank, unavailable = self.description.rank, self.unavailable
        if unavailable is None:
            self._core.membership.set(rank, trust)
        else:
            self._core.set_unavailable(rank, unavailable)

    def _update_wholeness(self, before: str | None) -> None:
        rank, partial = self.description.rank, self.description.partial_cache
        if partial is not None:
            self._last_partial_reason = partial
        if (partial is None) is not (before is None):
            self._wholeness_since = time.time()
            logger.info(
                "rank %d publishes %s its cache (%s)",
                rank,
                "all of" if before else "part of",
                partial or before,
            )

    def _update_availability(self, before: str | None) -> None:
        rank, unavailable = self.description.rank, self.unavailable
        if unavailable is None and before is not None:
            logger.info("rank %d: available again (was: %s)", rank, before)
            self._core.load.join(rank)
        elif unavailable is not None and before is None:
            logger.warning("rank %d: unavailable (%s)", rank, unavailable)
            self._reserved_at_last_poll = []

    def _update_load(self, described: LoadStat) -> None:
        if not self._is_behind(described):
            self._core.load.report(self.description.rank, described, time.monotonic())
        self._load_came_by_itself = False
        if not self._acknowledges:
            self._settle()

    def _settle(self) -> None:
        """End the reservations that were there at the last poll: this poll's load counts their requests.

        For a rank that acknowledges nothing: without this each request would count twice until its
        reservation's deadline, and on after its end.
        """
        self._core.reservations.acknowledge(self.description.rank, self._reserved_at_last_poll)
        self._reserved_at_last_poll = self._core.reservations.on_rank(self.description.rank)

    def _is_behind(self, described: LoadStat) -> bool:
        """Whether a description's load is older than the last report.

        One replica's totals never go back. Where the totals are equal, a report that came by itself since
        the last poll is taken for the later one.
        """
        last = self._core.load.last_report(self.description.rank)
        if last is None:
            return False
        totals, last_totals = _totals(described), _totals(last)
        return totals < last_totals or (totals == last_totals and self._load_came_by_itself)


def _identity(publisher: PublisherInfo | None) -> tuple[PublisherAddress, str, str] | None:
    """What stays the same while a publisher lives: where it is, which start of it, whether it can be dialled.

    With another epoch its batches are of another cache, so what is known of the rank counts no more.
    """
    if publisher is None:
        return None
    return publisher.address, publisher.state.epoch, publisher.state.status


def _totals(stat: LoadStat) -> tuple[int, int]:
    return (stat.total_prefill_uncached_tokens, stat.total_prefill_busy_us)
