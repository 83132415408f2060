"""Gets a rank's whole cache again: a fresh connection, a snapshot, and back-off between attempts.

    clear ──▶ back-off ──▶ new connection ──▶ fetch snapshot ──▶ fill ──▶ exact
                 ▲                │                 │             │
                 └── stale ◀──────┴─────────────────┴─────────────┘

A snapshot names the sequence number of the last batch in it. The subscription is sent before the snapshot
is asked for, so a later batch is either in the snapshot or waiting in the socket; batches up to the
snapshot's are skipped, later ones applied. A subscription takes effect at the publisher in its own time,
though: a batch published at that very moment can be lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from app.events.following.connection import Connection
from app.events.following.sync_status import SyncRecord, error_text
from app.events.following.synced_cache import SyncedCache
from app.events.snapshot import CacheSnapshot

_MIN_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 5.0


class Resynchroniser:
    """Brings `cache` from any state to `exact`, with a connection over which the next batches come.

    It owns that connection: makes it, replaces it with each attempt, and closes it.
    """

    def __init__(
        self,
        cache: SyncedCache,
        record: SyncRecord,
        *,
        connect: Callable[[], Connection],
        fetch_snapshot: Callable[[], Awaitable[CacheSnapshot]],
        connect_timeout_s: float,
        snapshot_timeout_s: float,
    ) -> None:
        """Opens nothing yet.

        Args:
            cache: what is filled.
            record: where each change of state is recorded.
            connect: begins a new connection to the publisher; may raise `ConnectionError`.
            fetch_snapshot: asks the rank for its cache's content; may fail, and is then tried again.
            connect_timeout_s: how long a connection may take.
            snapshot_timeout_s: how long a snapshot may take.
        """
        self._cache = cache
        self._record = record
        self._connect = connect
        self._fetch_snapshot = fetch_snapshot
        self._connect_timeout_s = connect_timeout_s
        self._snapshot_timeout_s = snapshot_timeout_s
        self._connection: Connection | None = None
        self._reported_epoch = cache.epoch
        self._new_epoch = asyncio.Event()
        self._backoff_s = _MIN_BACKOFF_S
        self._next_attempt = 0.0
        self._synced_at = 0.0

    @property
    def is_publisher_replaced(self) -> bool:
        """Whether the rank has a publisher now whose batches are not those in the cache."""
        return self._reported_epoch != self._cache.epoch

    def observe(self, epoch: str) -> None:
        """The rank reports that its publisher is `epoch`. A new one ends the back-off."""
        if epoch != self._reported_epoch:
            self._reported_epoch = epoch
            self._new_epoch.set()

    async def resync(self, reason: str) -> Connection:
        """Clear the cache and load a snapshot; tried until it succeeds, less and less often.

        Args:
            reason: why the cache can't be trusted; part of each recorded reason.

        Returns:
            The connection over which the batches after the snapshot come, to be read but not closed.
        """
        self._record.set("syncing", reason)
        self.close()
        self._cache.clear()
        if time.monotonic() - self._synced_at > _MAX_BACKOFF_S:
            self._backoff_s = _MIN_BACKOFF_S
        while True:
            await self.wait_for_next_attempt()
            connection = await self._attempt(reason)
            if connection is not None:
                return connection

    async def wait_for_next_attempt(self) -> None:
        """Wait for the back-off to pass, or for the rank to report a new publisher."""
        self._new_epoch.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(max(self._next_attempt, time.monotonic())):
                await self._new_epoch.wait()
        self._next_attempt = time.monotonic() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, _MAX_BACKOFF_S)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _attempt(self, reason: str) -> Connection | None:
        """The connection, if the cache holds the rank's blocks now; otherwise the record says why not."""
        epoch = self._reported_epoch
        try:
            connection = await self._new_connection()
            async with asyncio.timeout(self._snapshot_timeout_s):
                snapshot = await self._fetch_snapshot()
            if snapshot.epoch == epoch:
                await self._cache.fill(snapshot)
        except Exception as error:
            self._fail(f"{reason}; snapshot: {error_text(error)}")
            return None
        if connection.broke():
            self._fail(f"{reason}; connection lost while waiting for the snapshot")
            return None
        if snapshot.epoch != epoch:
            # The connection may still reach the old publisher: only one made from now on can't.
            self._reported_epoch = snapshot.epoch
            self._record.set("syncing", f"{reason}; the snapshot is of a new epoch")
            return None
        self._cache.accept(snapshot)
        self._record.snapshots += 1
        self._synced_at = time.monotonic()
        self._record.set("exact", reason)
        return connection

    def _fail(self, reason: str) -> None:
        """The cache is stale, so it holds nothing, also not what the attempt has filled it with."""
        self._cache.clear()
        self._record.set("stale", reason)

    async def _new_connection(self) -> Connection:
        """It reaches only the publisher that listens now, and holds no batch of another."""
        self.close()
        self._connection = self._connect()
        if not await self._connection.wait_connected(self._connect_timeout_s):
            raise ConnectionError(self._connection.trouble)
        return self._connection
