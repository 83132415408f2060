"""Follows one rank's cache events, so that a sink always holds the rank's blocks, or none.

                 ┌────────── gap or unreadable batch ──────────┐
                 ▼                                             │
    syncing ── replay has it all ───────────────────────────▶ exact
       │  ▲                                                    │
       │  └── connection lost, publisher restarted, ───────────┘
       │      replay can't help: `Resynchroniser`
       └───── snapshot fails ──▶ stale ── tried again with back-off ──▶ exact

    RankSubscriber ──▶ Resynchroniser ──▶ SyncedCache ──▶ CacheSink
          └── LiveBatches: those after the snapshot ──▲

A lost batch is noticed by the next one's number. When there is no next one, it is noticed by what the rank
reports of itself (`observe`), or, when neither comes for `probe_interval_s`, by asking the replay for what
comes after the last batch: so within `probe_interval_s + delivery_timeout_s` at the latest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import zmq.asyncio

from app.errors import WireError
from app.events.bad_messages import BadMessages
from app.events.curve import CurveClient, KeyPair
from app.events.following.batch_replayer import REPLAY_FAULTS, BatchReplayer
from app.events.following.connection import Connection, subscriber_context
from app.events.following.live_batches import LiveBatches
from app.events.following.load_subscriber import LoadSubscriber
from app.events.following.recovery_client import RecoveryClient
from app.events.following.resynchroniser import Resynchroniser
from app.events.following.sync_status import SyncRecord, SyncStatus, Trust, error_text
from app.events.following.synced_cache import CacheSink, SyncedCache
from app.events.publisher_info import PublisherAddress, PublisherInfo
from app.events.schema import LoadStat
from app.events.snapshot import CacheSnapshot

logger = logging.getLogger(__name__)


class RankSubscriber:
    """Keeps `sink` at what the publisher described by `info` says. Everything runs on the event loop.

    A rank whose address has changed needs a new subscriber; a publisher restarted at the same address
    doesn't. Events reach the sink without their token ids.
    """

    def __init__(
        self,
        info: PublisherInfo,
        sink: CacheSink,
        *,
        fetch_snapshot: Callable[[], Awaitable[CacheSnapshot]],
        on_load: Callable[[LoadStat], object],
        on_acknowledged: Callable[[Sequence[str]], object],
        on_state: Callable[[Trust], object] = lambda state: None,
        connect_timeout_s: float = 2.0,
        snapshot_timeout_s: float = 10.0,
        replay_timeout_s: float = 1.0,
        delivery_timeout_s: float = 0.4,
        probe_interval_s: float = 0.8,
        max_replayed_batches: int = 10_000,
        curve_keys: KeyPair | None = None,
        context: zmq.asyncio.Context | None = None,
    ) -> None:
        """Opens nothing yet; `info` must describe a publisher that is not disabled.

        Args:
            info: what to dial.
            sink: where the blocks go.
            fetch_snapshot: asks the rank for its cache's content; may fail, and is then tried again.
            on_load: called with each load report.
            on_acknowledged: called with the ids of requests that the rank's load counts from now on.
            on_state: called when the state of the sink has changed; it is `syncing` at first.
            connect_timeout_s: how long a connection may take.
            snapshot_timeout_s: how long a snapshot may take, or a whole replay.
            replay_timeout_s: how long to wait for each message of a replay.
            delivery_timeout_s: how long a batch that was published may take to arrive; then it is lost.
            probe_interval_s: how long nothing may be received before the replay is asked for later batches.
            max_replayed_batches: where more are missing a snapshot is faster, and taken at once.
            curve_keys: our own, for a publisher that encrypts.
            context: ZMQ's; by default one for all subscribers of the process.
        """
        assert info.is_publishing, info
        self._address = info.address
        self._topic = info.address.topic.encode()
        self._on_load = on_load
        self._on_acknowledged = on_acknowledged
        self._max_replayed_batches = max_replayed_batches
        self._context = context or subscriber_context()
        self._curve = _curve_client(info.address, curve_keys)
        self._bad = BadMessages(logger, f"rank {info.address.rank} at {info.address.event_endpoint}")
        self._record = SyncRecord(info.address.rank, on_state)
        self._cache = SyncedCache(sink, info.address.rank, info.state.epoch)
        self._resynchroniser = Resynchroniser(
            self._cache,
            self._record,
            connect=self._connect,
            fetch_snapshot=fetch_snapshot,
            connect_timeout_s=connect_timeout_s,
            snapshot_timeout_s=snapshot_timeout_s,
        )
        self._replayer = self._make_replayer(replay_timeout_s, snapshot_timeout_s)
        self._live = LiveBatches(
            self._cache,
            self._replayer,
            topic=info.address.topic.encode(),
            bad=self._bad,
            apply=self._apply_live,
            recover=self._recover,
            on_restarted=self._need_snapshot,
            on_disconnected=lambda: self._need_snapshot("connection lost"),
            delivery_timeout_s=delivery_timeout_s,
            probe_interval_s=probe_interval_s,
        )
        self._resync_reason: str | None = "first snapshot"  # why a snapshot is needed; None: it isn't
        self._connection: Connection | None = None  # the resynchroniser's, which closes it
        self._task: asyncio.Task[None] | None = None
        self._load: LoadSubscriber | None = None

    @property
    def status(self) -> SyncStatus:
        """How well the rank's cache is known now."""
        bad_messages = self._bad.count + (self._load.bad_messages if self._load else 0)
        return self._record.status(self._cache.applied_seq, bad_messages)

    # ---- life cycle

    def start(self) -> None:
        """Follow the rank until `close`."""
        assert self._task is None, "started twice"
        self._load = self._make_load_subscriber()
        if self._load is not None:
            self._load.start()
        self._task = asyncio.create_task(self._run(), name=f"events-of-rank-{self._address.rank}")

    async def close(self) -> None:
        """Stop and close the sockets; the sink keeps what it holds. A second call does nothing."""
        if self._load is not None:
            await self._load.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._replayer is not None:
            await self._replayer.close()
        self._resynchroniser.close()
        self._load = self._task = None

    def observe(self, epoch: str, last_seq: int) -> None:
        """What the rank reports of its publisher by another way.

        It shows what no message can: that the last batches before a pause were lost, and that a
        publisher was restarted and has been silent since.
        """
        self._resynchroniser.observe(epoch)
        if self._record.state != "exact":
            return
        if self._resynchroniser.is_publisher_replaced:
            self._need_snapshot("publisher restarted: new epoch")
        elif last_seq <= self._cache.applied_seq:
            self._live.record_received()
        else:
            self._live.record_published(last_seq)

    async def _run(self) -> None:
        while True:
            try:
                if self._resync_reason is not None:
                    await self._resync(self._resync_reason)
                assert self._connection is not None
                await self._live.follow(self._connection)
            except Exception as error:
                logger.exception("rank %d: internal error while following it", self._address.rank)
                self._need_snapshot(f"internal error: {error!r}")
                await self._resynchroniser.wait_for_next_attempt()

    # ---- sockets

    def _connect(self) -> Connection:
        if self._lacks_keys:
            raise ConnectionError("the rank wants CURVE, but no router_key_file is set")
        return Connection(self._context, self._address.event_endpoint, [self._topic], self._curve)

    @property
    def _lacks_keys(self) -> bool:
        return self._address.curve_public_key is not None and self._curve is None

    def _make_replayer(self, message_timeout_s: float, timeout_s: float) -> BatchReplayer | None:
        endpoint = self._address.replay_endpoint
        if endpoint is None:
            return None
        client = RecoveryClient(self._context, endpoint, timeout_s=message_timeout_s, curve=self._curve)
        return BatchReplayer(self._cache, client, timeout_s)

    def _make_load_subscriber(self) -> LoadSubscriber | None:
        endpoint, topic = self._address.load_endpoint, self._address.load_topic
        if endpoint is None or topic is None or self._lacks_keys:
            return None
        return LoadSubscriber(
            self._context,
            endpoint,
            rank=self._address.rank,
            topic=topic,
            on_load=self._on_load,
            on_acknowledged=self._on_acknowledged,
            curve=self._curve,
        )

    # ---- from a snapshot to live batches

    async def _resync(self, reason: str) -> None:
        """Return with the cache exact, and a connection over which the batches after it come."""
        if self._replayer is not None:
            self._replayer.disconnect()
        self._connection = await self._resynchroniser.resync(reason)
        self._resync_reason = None
        self._live.begin()

    def _need_snapshot(self, reason: str) -> None:
        if self._resync_reason is None:
            self._resync_reason = reason
        self._record.set("syncing", reason)
        self._live.end()

    # ---- live batches: exact, or syncing by replay

    async def _apply_live(self, seq: int, payload: bytes) -> None:
        try:
            self._cache.apply(seq, payload)
        except WireError as error:
            self._bad.add(error)
            await self._recover(seq)

    async def _recover(self, last: int) -> None:
        """Apply the missing batches up to `last` from the replay, or else ask for a snapshot."""
        first = self._cache.applied_seq + 1
        self._record.gaps += 1
        gap = f"batches {first} to {last} missing"
        if self._replayer is None or self._resynchroniser.is_publisher_replaced:
            self._need_snapshot(gap)
            return
        if last - first >= self._max_replayed_batches:
            self._need_snapshot(f"{gap}; at most {self._max_replayed_batches} are replayed")
            return
        self._record.set("syncing", gap)
        try:
            await self._replayer.replay(last)
        except REPLAY_FAULTS as error:
            self._need_snapshot(f"{gap}; replay: {error_text(error)}")
            return
        # The replay socket may have reached a publisher that took the place of the one followed here.
        assert self._connection is not None
        if self._connection.broke() or self._resynchroniser.is_publisher_replaced:
            self._need_snapshot(f"{gap}; connection lost")
        else:
            self._record.set("exact", f"{gap}; replayed")


def _curve_client(address: PublisherAddress, keys: KeyPair | None) -> CurveClient | None:
    if address.curve_public_key is None or keys is None:
        return None
    return CurveClient(keys, address.curve_public_key.encode())
