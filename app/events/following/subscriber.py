"""Follows one rank's cache events, so that a sink always holds the rank's blocks, or none.

                 ┌────────── gap or unreadable batch ──────────┐
                 ▼                                             │
    syncing ── replay has it all ───────────────────────────▶ exact
       │  ▲                                                    │
       │  └── connection lost, publisher restarted, ───────────┘
       │      replay can't help: sink cleared, fresh connection, snapshot
       └───── snapshot fails ──▶ stale ── tried again with back-off ──▶ exact

A snapshot names the sequence number of the last batch in it. The subscription is sent before the snapshot
is asked for, so a later batch is either in the snapshot or waiting in the socket; batches up to the
snapshot's are skipped, later ones applied. A subscription takes effect at the publisher in its own time,
though: a batch published at that very moment can be lost.

A lost batch is noticed by the next one's number. When there is no next one, it is noticed by what the rank
says of itself (`observe`), or, when neither says anything for `probe_interval_s`, by asking the replay for
what comes after the last batch: so within `probe_interval_s + unseen_timeout_s` at the latest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

import zmq
import zmq.asyncio

from app.errors import WireError
from app.events.bad_messages import BadMessages
from app.events.batch_codec import decode_batch
from app.events.curve import CurveClient, KeyPair
from app.events.following.connection import Connection, subscriber_context
from app.events.following.load_subscriber import LoadSubscriber
from app.events.following.loss_detector import LossDetector
from app.events.following.recent_batches import RecentBatches
from app.events.following.recovery_client import RecoveryClient
from app.events.following.sync_status import SyncRecord, SyncStatus, Trust
from app.events.publisher_info import PublisherAddress, PublisherInfo
from app.events.schema import CacheEvent, EventBatch, LoadStat, split_message
from app.events.snapshot import CacheSnapshot

logger = logging.getLogger(__name__)

_BURST = 256
_SLICE_S = 0.01
"""How long batches that wait may hold up the event loop, if a single one doesn't."""
_MIN_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 5.0


class CacheSink(Protocol):
    """Where one rank's blocks are kept."""

    def apply(self, events: Sequence[CacheEvent]) -> None:
        """Change the blocks by one batch."""

    def clear(self) -> None:
        """Hold no blocks."""


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
        unseen_timeout_s: float = 0.4,
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
            unseen_timeout_s: how long a batch that exists may be on its way before it counts as lost.
            probe_interval_s: how long nothing may be heard before the replay is asked for later batches.
            max_replayed_batches: where more are missing a snapshot is faster, and taken at once.
            curve_keys: our own, for a publisher that encrypts.
            context: ZMQ's; by default one for all subscribers of the process.
        """
        assert info.is_publishing, info
        self._address = info.address
        self._sink = sink
        self._fetch_snapshot = fetch_snapshot
        self._on_load = on_load
        self._on_acknowledged = on_acknowledged
        self._connect_timeout_s = connect_timeout_s
        self._snapshot_timeout_s = snapshot_timeout_s
        self._max_replayed_batches = max_replayed_batches
        self._context = context or subscriber_context()
        self._curve = _curve_client(info.address, curve_keys)
        self._lacks_keys = info.address.curve_public_key is not None and curve_keys is None
        self._topic = info.address.topic.encode()
        self._recovery = (
            RecoveryClient(self._context, endpoint, timeout_s=replay_timeout_s, curve=self._curve)
            if (endpoint := info.address.replay_endpoint) is not None
            else None
        )
        self._bad = BadMessages(logger, f"rank {info.address.rank} at {info.address.event_endpoint}")
        self._task: asyncio.Task[None] | None = None
        self._load: LoadSubscriber | None = None
        self._connection: Connection | None = None
        self._wake = asyncio.Event()

        self._record = SyncRecord(info.address.rank, on_state)
        self._epoch = info.state.epoch  # of what the sink holds
        self._applied_seq = -1  # last batch in the sink
        self._live_seq = -1  # last batch received over this connection
        self._distrust: str | None = "first snapshot"  # why a snapshot is needed
        self._observed_epoch = info.state.epoch
        self._losses = LossDetector(unseen_timeout_s, probe_interval_s if self._recovery else None)
        self._recent = RecentBatches()
        self._probe: asyncio.Task[None] | None = None
        self._backoff_s = _MIN_BACKOFF_S
        self._next_attempt = 0.0
        self._synced_at = 0.0

    @property
    def status(self) -> SyncStatus:
        """How well the rank's cache is known now."""
        bad_messages = self._bad.count + (self._load.bad_messages if self._load else 0)
        return self._record.status(self._applied_seq, bad_messages)

    def start(self) -> None:
        """Follow the rank until `close`."""
        assert self._task is None, "started twice"
        address = self._address
        endpoint, topic = address.load_endpoint, address.load_topic
        if endpoint is not None and topic is not None and not self._lacks_keys:
            self._load = LoadSubscriber(
                self._context,
                endpoint,
                rank=address.rank,
                topic=topic,
                on_load=self._on_load,
                on_acknowledged=self._on_acknowledged,
                curve=self._curve,
            )
            self._load.start()
        self._task = asyncio.create_task(self._run(), name=f"events-of-rank-{address.rank}")

    async def close(self) -> None:
        """Stop and close the sockets; the sink keeps what it holds. A second call does nothing."""
        if self._load is not None:
            await self._load.close()
        tasks = [task for task in (self._task, self._probe) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._disconnect()
        self._load = self._task = None

    def observe(self, epoch: str, last_seq: int) -> None:
        """What the rank says of its publisher by another way.

        It shows what no message can: that the last batches before a pause were lost, and that a
        publisher was restarted and has been silent since.
        """
        is_new_epoch = epoch != self._observed_epoch
        self._observed_epoch = epoch
        if self._record.state != "exact":
            if is_new_epoch:
                self._wake.set()
        elif epoch != self._epoch:
            self._need_snapshot("publisher restarted: new epoch")
        elif last_seq <= self._applied_seq:
            self._losses.note_heard()
        else:
            self._note_exists(last_seq)

    async def _run(self) -> None:
        while True:
            try:
                if self._distrust is not None:
                    await self._resync(self._distrust)
                await self._follow()
            except Exception as error:
                logger.exception("rank %d: internal error while following it", self._address.rank)
                self._need_snapshot(f"internal error: {error!r}")
                await self._wait_for_next_attempt()

    # ---- following: exact, or syncing by replay

    async def _follow(self) -> None:
        """Apply batches as they come, until a snapshot is needed."""
        assert self._connection is not None
        while self._distrust is None:
            self._connection.notify(self._wake.set)
            await self._wait(self._losses.next_look())
            messages = self._connection.receive(_BURST)
            if self._connection.broke():
                self._need_snapshot("connection lost")
            until = time.monotonic() + _SLICE_S
            for frames in messages:
                if self._distrust is not None:
                    return
                await self._on_message(frames)
                if time.monotonic() > until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + _SLICE_S
            if len(messages) == _BURST:
                self._wake.set()
                await asyncio.sleep(0)
            elif self._distrust is None:
                await self._look_for_lost()

    async def _wait(self, until: float | None) -> None:
        """Wait to be woken, until a monotonic time at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        self._wake.clear()

    async def _on_message(self, frames: Sequence[bytes]) -> None:
        try:
            topic, seq, payload = split_message(frames)
            if topic != self._topic:
                raise WireError(f"topic {topic!r}; subscribed to {self._topic!r}")
        except WireError as error:
            self._bad.add(error)
            return
        if seq <= self._applied_seq and self._recent.has(seq, payload):
            self._live_seq = max(self._live_seq, seq)
            return  # late or twice
        if seq <= self._live_seq or self._recent.knows(seq):
            self._need_snapshot(f"publisher restarted: another batch {seq} came after {self._applied_seq}")
            return
        self._live_seq = seq
        self._losses.note_heard()
        if seq <= self._applied_seq:
            return  # replayed, too long ago to be remembered
        if seq > self._applied_seq + 1:
            await self._recover(seq - 1)
        if self._distrust is None and seq > self._applied_seq:
            await self._apply_live(seq, payload)

    async def _apply_live(self, seq: int, payload: bytes) -> None:
        try:
            self._apply(seq, payload)
        except WireError as error:
            self._bad.add(error)
            await self._recover(seq)

    def _apply_replayed(self, seq: int, payload: bytes) -> None:
        if seq != self._applied_seq:
            self._apply(seq, payload)
        elif self._recent.knows(seq) and not self._recent.has(seq, payload):
            raise WireError(f"publisher restarted: it has another batch {seq}")

    def _apply(self, seq: int, payload: bytes) -> None:
        """Apply the batch after the last one. Raises `WireError` if it isn't, or can't be read."""
        if seq != self._applied_seq + 1:
            raise WireError(f"batch {seq} where batch {self._applied_seq + 1} is needed")
        self._sink.apply(self._decode(payload).events)
        self._recent.add(seq, payload)
        self._applied_seq = seq

    def _decode(self, payload: bytes) -> EventBatch:
        batch = decode_batch(payload, token_ids=False)
        if batch.dp_rank not in (None, self._address.rank):
            raise WireError(f"batch of rank {batch.dp_rank}; rank {self._address.rank} is followed here")
        return batch

    # ---- batches that don't come

    def _note_exists(self, seq: int) -> None:
        if self._losses.note_exists(seq, self._applied_seq):
            self._wake.set()

    async def _look_for_lost(self) -> None:
        lost = self._losses.lost(self._applied_seq)
        if lost is not None:
            await self._recover(lost)
        elif self._recovery is not None and self._losses.take_probe() and not self._is_probing():
            self._probe = asyncio.create_task(self._ask_for_later(self._recovery))

    def _is_probing(self) -> bool:
        return self._probe is not None and not self._probe.done()

    async def _ask_for_later(self, recovery: RecoveryClient) -> None:
        """Find out whether there are batches after the last one. No answer says nothing."""

        def note(seq: int, payload: bytes) -> None:
            self._note_exists(seq)

        with suppress(WireError, TimeoutError, zmq.ZMQError):
            async with asyncio.timeout(self._snapshot_timeout_s):
                await recovery.replay(self._applied_seq + 1, note)

    async def _recover(self, last: int) -> None:
        """Apply the missing batches up to `last` from the replay, or else ask for a snapshot."""
        first = self._applied_seq + 1
        self._record.gaps += 1
        gap = f"batches {first} to {last} missing"
        if self._recovery is None or self._observed_epoch != self._epoch:
            self._need_snapshot(gap)
            return
        if last - first >= self._max_replayed_batches:
            self._need_snapshot(f"{gap}; at most {self._max_replayed_batches} are replayed")
            return
        self._record.set("syncing", gap)
        self._end_probe()  # a question at a time, and this is the better one
        try:
            async with asyncio.timeout(self._snapshot_timeout_s):
                # From the last batch that is here already: it tells whose batches these are.
                await self._recovery.replay(max(0, first - 1), self._apply_replayed)
            if self._applied_seq < last:
                raise WireError(f"it has nothing after batch {self._applied_seq}")
        except (WireError, TimeoutError, zmq.ZMQError) as error:
            self._need_snapshot(f"{gap}; replay: {_why(error)}")
            return
        # The replay socket may have reached a publisher that took the place of the one followed here.
        if self._connection is None or self._connection.broke() or self._observed_epoch != self._epoch:
            self._need_snapshot(f"{gap}; connection lost")
        else:
            self._record.set("exact", f"{gap}; replayed")

    # ---- getting a snapshot

    def _need_snapshot(self, reason: str) -> None:
        if self._distrust is None:
            self._distrust = reason
        self._record.set("syncing", reason)
        self._wake.set()

    async def _resync(self, reason: str) -> None:
        """Clear the sink and load a snapshot; tried until it succeeds, less and less often."""
        self._record.set("syncing", reason)
        self._disconnect()
        self._sink.clear()
        self._applied_seq = -1
        if time.monotonic() - self._synced_at > _MAX_BACKOFF_S:
            self._backoff_s = _MIN_BACKOFF_S
        while True:
            await self._wait_for_next_attempt()
            epoch = self._observed_epoch
            try:
                connection = await self._connect_anew()
                async with asyncio.timeout(self._snapshot_timeout_s):
                    snapshot = await self._fetch_snapshot()
                if snapshot.epoch == epoch:
                    await self._apply_snapshot(snapshot)
            except Exception as error:
                self._record.set("stale", f"{reason}; snapshot: {_why(error)}")
                continue
            if connection.broke():
                self._record.set("stale", f"{reason}; connection lost while waiting for the snapshot")
            elif snapshot.epoch != epoch:
                # The connection may still reach the old publisher: only one made from now on can't.
                self._observed_epoch = snapshot.epoch
                self._record.set("syncing", f"{reason}; the snapshot is of a new epoch")
            else:
                self._trust(snapshot, reason)
                return

    async def _wait_for_next_attempt(self) -> None:
        """Wait for the back-off to pass, or for the rank to say that it has a new publisher."""
        self._wake.clear()
        await self._wait(max(self._next_attempt, time.monotonic()))
        self._next_attempt = time.monotonic() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, _MAX_BACKOFF_S)

    async def _connect_anew(self) -> Connection:
        """A new connection reaches only the publisher that listens now, and holds no batch of another."""
        self._disconnect()
        if self._lacks_keys:
            raise ConnectionError("the rank wants CURVE, but no router_key_file is set")
        self._connection = Connection(self._context, self._address.event_endpoint, [self._topic], self._curve)
        self._live_seq = -1
        if not await self._connection.wait_connected(self._connect_timeout_s):
            raise ConnectionError(self._connection.trouble)
        return self._connection

    def _end_probe(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def _disconnect(self) -> None:
        self._end_probe()
        if self._recovery is not None:
            self._recovery.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _apply_snapshot(self, snapshot: CacheSnapshot) -> None:
        self._sink.clear()
        ts = 0.0
        for payload in snapshot.payloads:
            batch = self._decode(payload)
            self._sink.apply(batch.events)
            ts = batch.ts
            await asyncio.sleep(0)
        self._recent.begin(snapshot.seq, ts)

    def _trust(self, snapshot: CacheSnapshot, reason: str) -> None:
        """The sink holds `snapshot`: from here on batches are applied."""
        self._epoch = snapshot.epoch
        self._applied_seq = snapshot.seq
        self._distrust = None
        self._record.snapshots += 1
        # The first probe is due at once: the subscription may have taken effect after a batch or two.
        self._losses.begin()
        self._synced_at = time.monotonic()
        self._record.set("exact", reason)


def _curve_client(address: PublisherAddress, keys: KeyPair | None) -> CurveClient | None:
    if address.curve_public_key is None or keys is None:
        return None
    return CurveClient(keys, address.curve_public_key.encode())


def _why(error: Exception) -> str:
    """An error's text, or its name if it has none, as a timeout."""
    return str(error) or type(error).__name__
