"""Follows one foreign publisher into a relay, and what comes out into our own publisher.

    connecting ──▶ replay from 0 ──first is 0──▶ whole ◀──── AllBlocksCleared ────┐
        ▲  │             └────────first > 0────▶ partial ──▶ flush, if allowed ───┘
        │  └──▶ down: tried again                │   │
        └── connection lost, publisher restarted, or a gap that can't be replayed

A foreign publisher answers no question for its whole cache. Its replay buffer says all there is to know while
it reaches back to the first batch, and so does everything after its cache was emptied. SGLang and vLLM answer
replays from the loop that publishes, after up to 100 ms: so the replay is asked rarely.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future

from app.engine.interface import Result
from app.engine.relay.feed_status import FeedAddress, FeedRecord, FeedState, FeedStatus
from app.engine.relay.relay import Relay
from app.engine.relay.relayed_cache import Publish, RelayedCache
from app.errors import WireError
from app.events.bad_messages import BadMessages
from app.events.curve import CurveClient
from app.events.following.batch_replayer import REPLAY_FAULTS, BatchReplayer
from app.events.following.connection import Connection, subscriber_context
from app.events.following.live_batches import LiveBatches
from app.events.following.recovery_client import RecoveryClient
from app.events.following.sync_status import error_text
from app.events.snapshot import CachedBlock

logger = logging.getLogger(__name__)

Flush = Callable[[], Awaitable[object]]

_MIN_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 2.0
_FLUSH_INTERVAL_S = 5.0
"""Between two attempts to flush: a busy worker refuses."""


class ForeignFeed:
    """Keeps `relay` at what the publisher at `address` says. Everything runs on the event loop.

    The rank's number in the worker's batches is ignored: the address tells which worker it is.
    """

    def __init__(
        self,
        address: FeedAddress,
        relay: Relay,
        publish: Publish,
        *,
        name: str,
        flush: Flush | None = None,
        on_state: Callable[[FeedState], object] = lambda state: None,
        connect_timeout_s: float = 2.0,
        message_timeout_s: float = 2.0,
        replay_timeout_s: float = 30.0,
        delivery_timeout_s: float = 0.4,
        probe_interval_s: float = 5.0,
        curve: CurveClient | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            address: what to dial.
            relay: where batches go; the feed's alone from now on, but for `add_salt`, `num_blocks` and
                `counters`.
            publish: `EngineListener.publish`, called with the relay's lock held.
            name: of the worker, for the log.
            flush: empties the worker's cache; called after an adoption that is partial, until the worker says
                that it is empty. May fail, as a busy worker refuses, and is then tried again.
            on_state: called with each new state; the first is `connecting`, and isn't told.
            connect_timeout_s: how long a connection may take.
            message_timeout_s: how long to wait for each message of a replay.
            replay_timeout_s: how long a whole replay may take.
            delivery_timeout_s: how long a batch that was published may take to arrive; then it is lost.
            probe_interval_s: how long nothing may be received before the replay is asked for later batches.
            curve: for a publisher that encrypts.
        """
        self._address = address
        self._name = name
        self._relay = relay
        self._flush = flush
        self._connect_timeout_s = connect_timeout_s
        self._replay_timeout_s = replay_timeout_s
        self._curve = curve
        self._context = subscriber_context()
        self._topic = address.topic.encode()
        self._cache = RelayedCache(relay, publish)
        self._record = FeedRecord(name, on_state)
        self._bad = BadMessages(logger, f"{name} at {address.event_endpoint}")
        self._client: RecoveryClient | None = None
        self._replayer: BatchReplayer | None = None
        if address.replay_endpoint is not None:
            self._client = RecoveryClient(
                self._context, address.replay_endpoint, timeout_s=message_timeout_s, curve=curve
            )
            self._replayer = BatchReplayer(self._cache, self._client, replay_timeout_s)
        self._live = LiveBatches(
            self._cache,
            self._replayer,
            topic=self._topic,
            bad=self._bad,
            apply=self._apply_live,
            recover=self._recover,
            on_restarted=self._need_adoption,
            on_disconnected=self._lose_connection,
            delivery_timeout_s=delivery_timeout_s,
            probe_interval_s=probe_interval_s,
        )
        self._connection: Connection | None = None
        self._adoption_reason: str | None = "first connection"  # why one is needed; None: it isn't
        self._keeps_no_batches = False  # the publisher, although it has published
        self._applied_at: float | None = None
        self._gaps = 0
        self._adoptions = 0
        self._backoff_s = _MIN_BACKOFF_S
        self._adopted_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._flushing: asyncio.Task[None] | None = None

    @property
    def status(self) -> FeedStatus:
        """How well the worker's cache is known now."""
        idle_s = None if self._applied_at is None else time.monotonic() - self._applied_at
        return FeedStatus(
            state=self._record.state,
            reason=self._record.reason,
            since=self._record.since,
            applied_seq=self._cache.applied_seq,
            gaps=self._gaps,
            adoptions=self._adoptions,
            bad_messages=self._bad.count,
            idle_s=idle_s,
            relay=self._relay.counters,
        )

    def content(self, read: Callable[[Sequence[CachedBlock]], Result]) -> Future[Result]:
        """`RankEngine.content`, on any thread: `read` is called at once, with the relay locked."""
        return self._cache.content(read)

    # ---- life cycle

    def start(self) -> None:
        """Follow the publisher until `close`, on the running event loop."""
        assert self._task is None, "started twice"
        self._task = asyncio.create_task(self._run(), name=f"events-of-{self._name}")

    async def close(self) -> None:
        """Stop and close the sockets; the relay keeps what it holds. A second call does nothing."""
        tasks = [task for task in (self._task, self._flushing) if task is not None]
        self._task = self._flushing = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._replayer is not None:
            await self._replayer.close()
        self._disconnect()

    async def _run(self) -> None:
        while True:
            try:
                if self._adoption_reason is not None:
                    await self._adopt(self._adoption_reason)
                assert self._connection is not None
                await self._live.follow(self._connection)
            except Exception as error:
                logger.exception("%s: internal error while following it", self._name)
                self._need_adoption(f"internal error: {error!r}")
                await asyncio.sleep(_MAX_BACKOFF_S)

    # ---- adoption

    async def _adopt(self, reason: str) -> None:
        """Return with a connection, and with what the replay still says; tried until there is one."""
        self._record.set("connecting", reason)
        self._cache.clear()
        if self._replayer is not None:
            self._replayer.disconnect()
        if time.monotonic() - self._adopted_at > _MAX_BACKOFF_S:
            self._backoff_s = _MIN_BACKOFF_S
        while not await self._attempt(reason):
            self._cache.clear()
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(2 * self._backoff_s, _MAX_BACKOFF_S)
        self._adoptions += 1
        self._adopted_at = time.monotonic()
        self._adoption_reason = None
        self._live.begin()
        self._update_state(reason)
        if self._flush is not None and self._record.state == "partial":
            self._start_flushing(self._flush)

    async def _attempt(self, reason: str) -> bool:
        self._disconnect()
        endpoint = self._address.event_endpoint
        try:
            connection = Connection(self._context, endpoint, [self._topic], self._curve)
        except WireError as error:
            self._record.set("down", f"{reason}; {error}")
            return False
        self._connection = connection
        if not await connection.wait_connected(self._connect_timeout_s):
            self._record.set("down", f"{reason}; {connection.trouble}")
            return False
        await self._replay_all()
        if connection.broke():
            self._record.set("down", f"{reason}; connection lost during the replay")
            return False
        return True

    async def _replay_all(self) -> None:
        """Apply every batch that the publisher still has, the oldest first."""
        num_batches = 0
        self._live.begin_at = None

        def take(seq: int, payload: bytes) -> None:
            nonlocal num_batches
            if num_batches == 0 or seq != self._cache.applied_seq + 1:
                self._cache.begin(seq)  # the first one, or the first after a hole
            self._apply(seq, payload)
            num_batches += 1

        if self._client is None:
            self._live.begin_at = self._cache.begin
            return
        try:
            async with asyncio.timeout(self._replay_timeout_s):
                await self._client.replay(0, take)
        except REPLAY_FAULTS as error:
            # Without its end what came is still true; what is missing after it shows as a gap.
            self._bad.add(f"replay: {error_text(error)}")
            if num_batches == 0:
                self._live.begin_at = self._cache.begin
            return
        if num_batches == 0:
            # Nothing was published yet, unless it keeps no batches.
            self._cache.begin(0)
            if self._keeps_no_batches:
                self._live.begin_at = self._cache.begin

    # ---- live batches

    async def _apply_live(self, seq: int, payload: bytes) -> None:
        self._apply(seq, payload)
        self._update_state("")

    def _apply(self, seq: int, payload: bytes) -> None:
        self._cache.apply(seq, payload)
        self._applied_at = time.monotonic()

    def _need_adoption(self, reason: str) -> None:
        if self._adoption_reason is None:
            self._adoption_reason = reason
        self._live.end()

    def _lose_connection(self) -> None:
        self._keeps_no_batches = False
        self._need_adoption("connection lost")

    # ---- whole or partial

    def _update_state(self, reason: str) -> None:
        """Record what an applied batch, or an adoption, has changed."""
        state: FeedState = "whole" if self._cache.is_whole else "partial"
        if self._record.state == state:
            return
        if state == "partial" and self._record.state == "whole":
            reason = f"batch {self._cache.applied_seq} could not be read"
        elif state == "partial":
            reason = f"{reason}; {self._why_partial()}"
        elif self._record.state == "partial":
            reason = "the worker's cache was cleared"
        self._record.set(state, reason)

    def _why_partial(self) -> str:
        if self._client is None:
            return "the worker has no replay, so what it published before isn't known"
        if self._live.begin_at is not None:
            return "the replay didn't say what was published before"
        return "the replay doesn't reach back to the first batch"

    def _start_flushing(self, flush: Flush) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush_until_whole(flush), name=f"flush-{self._name}")

    async def _flush_until_whole(self, flush: Flush) -> None:
        """Ask until the worker's events say that its cache is empty: a busy one refuses, or does it later."""
        while self._record.state == "partial":
            try:
                async with asyncio.timeout(_FLUSH_INTERVAL_S):
                    await flush()
            except Exception as error:
                self._record.set("partial", f"{self._why_partial()}; flush: {error_text(error)}")
            await asyncio.sleep(_FLUSH_INTERVAL_S)

    # ---- batches that don't arrive

    async def _recover(self, last: int) -> None:
        """Apply the missing batches up to `last` from the replay, or else begin again."""
        self._gaps += 1
        gap = f"batches {self._cache.applied_seq + 1} to {last} missing"
        if self._replayer is None:
            self._need_adoption(f"{gap}; the worker has no replay")
            return
        try:
            await self._replayer.replay(last)
        except REPLAY_FAULTS as error:
            self._keeps_no_batches = True
            self._need_adoption(f"{gap}; replay: {error_text(error)}")
            return
        # The replay socket may have reached a publisher that took the place of the one followed here.
        assert self._connection is not None
        if self._connection.broke():
            self._need_adoption(f"{gap}; connection lost")
            return
        self._applied_at = time.monotonic()
        self._update_state("")
        self._record.set(self._record.state, f"{gap}; replayed")

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
