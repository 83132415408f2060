"""Asks a rank's recovery socket for missed batches or for the whole cache content."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq
import zmq.asyncio

from app.errors import WireError
from app.events.curve import CurveClient
from app.events.replay import (
    ReplayRequest,
    Reply,
    SnapshotRequest,
    parse_reply,
    request_frames,
)
from app.events.schema import MAX_FRAME_BYTES
from app.events.snapshot import CacheSnapshot

MAX_SNAPSHOT_PAYLOADS = 65_536
_SLICE = 64


class RecoveryClient:
    """One question at a time to the recovery socket at `address`, over one connection.

    The socket is opened with the first question, and again after an answer that wasn't read to its end:
    what is left of that must not be taken for the next answer.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        address: str,
        *,
        timeout_s: float = 1.0,
        curve: CurveClient | None = None,
    ) -> None:
        """`timeout_s` is how long to wait for each message of an answer; `curve` None: no encryption."""
        self._context = context
        self._address = address
        self._timeout_ms = int(timeout_s * 1000)
        self._curve = curve
        self._socket: zmq.asyncio.Socket | None = None
        self._received: zmq.Socket[bytes] | None = None
        """A plain view of the socket: receiving what is there needs no future."""
        self._asking = asyncio.Lock()

    async def replay(self, first: int, on_batch: Callable[[int, bytes], object]) -> None:
        """Call `on_batch(seq, payload)` with every batch from `first` on that is still buffered.

        Raises:
            TimeoutError: the server let `timeout_s` pass between two messages, or isn't there.
            WireError: there is no such address, or its reply is malformed. What `on_batch` raises comes
                through too.
        """

        def take(reply: Reply) -> None:
            if reply.seq is not None:
                on_batch(reply.seq, reply.payload)

        await self._ask(ReplayRequest(first), take)

    async def snapshot(self, *, timeout_s: float = 30.0) -> CacheSnapshot:
        """The whole cache content. `timeout_s` is how long the rank may take to begin: it finishes a step.

        Raises:
            TimeoutError: as `replay`.
            WireError: the rank has no snapshot to give now, or its reply is malformed.
        """
        payloads: list[bytes] = []
        seqs: set[int] = set()
        epoch = b""

        def take(reply: Reply) -> None:
            nonlocal epoch
            if reply.seq is None:
                epoch = reply.payload
                return
            payloads.append(reply.payload)
            seqs.add(reply.seq)
            if len(seqs) > 1 or len(payloads) > MAX_SNAPSHOT_PAYLOADS:
                raise WireError(
                    f"snapshot of {len(payloads)} batches with the numbers {seqs}; "
                    f"allowed are {MAX_SNAPSHOT_PAYLOADS} batches of one number"
                )

        await self._ask(SnapshotRequest(), take, first_timeout_ms=int(timeout_s * 1000))
        if not epoch or not seqs:
            raise WireError("the rank has no snapshot to give")
        return CacheSnapshot(epoch.decode(errors="replace"), seqs.pop(), payloads)

    def close(self) -> None:
        """Close the socket; a later question opens it again."""
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = self._received = None

    async def _ask(
        self,
        request: ReplayRequest | SnapshotRequest,
        take: Callable[[Reply], object],
        *,
        first_timeout_ms: int | None = None,
    ) -> None:
        """Send `request` and call `take` with every message of the answer, its end included."""
        async with self._asking:
            is_complete = False
            try:
                await self._send(request_frames(request))
                timeout_ms, num_taken = first_timeout_ms or self._timeout_ms, 0
                while not is_complete:
                    reply = parse_reply(await self._receive(timeout_ms))
                    take(reply)
                    is_complete = reply.seq is None
                    timeout_ms, num_taken = self._timeout_ms, num_taken + 1
                    if num_taken % _SLICE == 0:
                        await asyncio.sleep(0)
            finally:
                if not is_complete:
                    self.close()

    async def _send(self, frames: list[bytes]) -> None:
        try:
            await self._open().send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            # There is a queue as soon as the socket is connecting; ZMQ takes it away when it is refused.
            raise TimeoutError(f"the connection to {self._address} was refused") from None

    async def _receive(self, timeout_ms: int) -> list[bytes]:
        assert self._socket is not None
        assert self._received is not None
        while True:
            try:
                return self._received.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                if not await self._socket.poll(timeout_ms):
                    raise TimeoutError(f"no reply within {timeout_ms / 1000:g} s") from None

    def _open(self) -> zmq.asyncio.Socket:
        if self._socket is None:
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
            self._socket.setsockopt(zmq.IPV6, "[" in self._address)
            if self._curve is not None:
                self._curve.secure(self._socket)
            try:
                self._socket.connect(self._address)
            except zmq.ZMQError as error:
                self.close()
                reason = zmq.strerror(error.errno or 0)
                raise WireError(f"{self._address!r} can't be dialled: {reason}") from None
            self._received = zmq.Socket.shadow(self._socket)
        return self._socket
