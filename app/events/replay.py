"""Replay of missed batches: the buffer, the rank's server and the subscriber's request.

    DEALER ──▶ ROUTER   "" | start_seq
    DEALER ◀── ROUTER   "" | topic | seq | payload     for every buffered batch from start_seq on
                        "" | ""    | ff*8 | ""         the end

The framing is that of vLLM and SGLang 0.5.23; `plain` leaves the second frame out, as SGLang 0.5.13 does.
Requests are served on a thread of their own, interleaved, so that neither a replay nor a peer that doesn't
read holds up publishing or another replay.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

import zmq
import zmq.asyncio

from app.errors import WireError
from app.events.curve import CurveClient
from app.events.schema import (
    END_OF_REPLAY,
    MAX_FRAME_BYTES,
    EventBatch,
    decode_batch,
    decode_seq,
    encode_seq,
)

logger = logging.getLogger(__name__)

_MAX_TRANSFERS = 64
_SLICE = 64
_STALLED_POLL_MS = 10
_PEER_HWM = 64
_MAX_REQUEST_BYTES = 1024
_MAX_BATCHES_ASKED = 100_000


class ReplayBuffer:
    """The last `capacity` batches. Written by the publisher's thread, read by the replay server's."""

    def __init__(self, capacity: int) -> None:
        self._batches: deque[tuple[int, bytes]] = deque(maxlen=capacity)
        self._lock = threading.Lock()

    def append(self, seq: int, payload: bytes) -> None:
        """Keep a batch; the oldest one leaves when the buffer is full."""
        with self._lock:
            self._batches.append((seq, payload))

    def since(self, seq: int) -> list[tuple[int, bytes]]:
        """Buffered `(seq, payload)` from `seq` on, in order."""
        with self._lock:
            return [batch for batch in self._batches if batch[0] >= seq]


class ReplayServer:
    """Answers replay requests on a bound ROUTER socket, which belongs to its thread from `start` on.

    Attributes:
        refused: requests that were not `["", start_seq]`.
        abandoned: replies given up because the peer was gone or read nothing for `stall_timeout_s`.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        buffer: ReplayBuffer,
        topic: bytes | None,
        *,
        stall_timeout_s: float = 5.0,
    ) -> None:
        """`topic` None replies in the plain framing."""
        self.refused = 0
        self.abandoned = 0
        self._socket = socket
        self._buffer = buffer
        self._prefix = [b""] if topic is None else [b"", topic]
        self._end = [b"", END_OF_REPLAY, b""] if topic is None else [b"", b"", END_OF_REPLAY, b""]
        self._stall_timeout_s = stall_timeout_s
        self._transfers: list[_Transfer] = []
        stop_address = f"inproc://replay-stop-{id(self)}"
        self._stopped = _pair(socket.context, stop_address, bind=True)
        self._stop = _pair(socket.context, stop_address, bind=False)
        self._thread = threading.Thread(target=self._run, name="kv-replay", daemon=True)

    @staticmethod
    def prepare(socket: zmq.Socket[bytes]) -> None:
        """The options that a ROUTER needs before it is bound."""
        # Mandatory: a full or vanished peer is an error here instead of a silent loss.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.SNDHWM, _PEER_HWM)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_REQUEST_BYTES)
        socket.setsockopt(zmq.LINGER, 0)

    def start(self) -> None:
        """Serve until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving and close the socket; replies under way are cut off."""
        self._stop.send(b"")
        self._thread.join()
        self._stop.close(linger=0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._stopped, zmq.POLLIN)
        progressed = False
        while True:
            # Beyond this many, requests wait in the socket.
            poller.register(self._socket, zmq.POLLIN if len(self._transfers) < _MAX_TRANSFERS else 0)
            idle_ms = _STALLED_POLL_MS if self._transfers else None
            ready = dict(poller.poll(0 if progressed else idle_ms))
            if self._stopped in ready:
                break
            if self._socket in ready:
                self._accept(self._socket.recv_multipart())
            progressed = self._serve()
        self._stopped.close(linger=0)
        self._socket.close(linger=0)

    def _accept(self, frames: Sequence[bytes]) -> None:
        if len(frames) != 3 or frames[1] != b"" or len(frames[2]) != 8:
            self.refused += 1
            logger.warning(
                'replay request of sizes %s refused: not "", start_seq', [len(f) for f in frames[1:]]
            )
            return
        deadline = time.monotonic() + self._stall_timeout_s
        self._transfers.append(_Transfer(frames[0], self._buffer.since(decode_seq(frames[2])), deadline))

    def _serve(self) -> bool:
        """Send a slice of every peer's first reply; whether any message went out."""
        progressed = False
        first_of_peer = {transfer.identity: transfer for transfer in reversed(self._transfers)}
        for transfer in first_of_peer.values():
            num_sent = self._send_slice(transfer)
            now = time.monotonic()
            if num_sent:
                progressed = True
                transfer.deadline = now + self._stall_timeout_s
            elif now > transfer.deadline:
                self._abandon(transfer, "it reads nothing")
        self._transfers = [transfer for transfer in self._transfers if not transfer.done]
        return progressed

    def _send_slice(self, transfer: _Transfer) -> int:
        for num_sent in range(_SLICE):
            if transfer.done:
                return num_sent
            try:
                self._socket.send_multipart([transfer.identity, *self._next(transfer)], zmq.NOBLOCK)
            except zmq.Again:
                return num_sent
            except zmq.ZMQError as error:
                self._abandon(transfer, str(error))
                return num_sent
            transfer.advance()
        return _SLICE

    def _next(self, transfer: _Transfer) -> list[bytes]:
        batch = transfer.current
        if batch is None:
            return self._end
        seq, payload = batch
        return [*self._prefix, encode_seq(seq), payload]

    def _abandon(self, transfer: _Transfer, why: str) -> None:
        self.abandoned += 1
        transfer.done = True
        logger.info("replay to %s given up: %s", transfer.identity.hex(), why)


class _Transfer:
    """One reply under way: the batches, then the end marker (`current` is None)."""

    def __init__(self, identity: bytes, batches: list[tuple[int, bytes]], deadline: float) -> None:
        self.identity = identity
        self.deadline = deadline
        self.done = False
        self._batches = batches
        self._position = 0

    @property
    def current(self) -> tuple[int, bytes] | None:
        return self._batches[self._position] if self._position < len(self._batches) else None

    def advance(self) -> None:
        self.done = self._position == len(self._batches)
        self._position += 1


async def fetch_replay(
    context: zmq.asyncio.Context,
    address: str,
    first: int,
    last: int,
    *,
    timeout_s: float = 1.0,
    curve: CurveClient | None = None,
) -> list[EventBatch]:
    """The batches `first` to `last`, both included, from the replay server at `address`.

    Raises:
        WireError: the server no longer has them all, or replies nonsense, or they are too many to ask for.
        TimeoutError: it let `timeout_s` seconds pass without a reply.
    """
    if last - first >= _MAX_BATCHES_ASKED:
        raise WireError(
            f"{last - first + 1} batches missing; replay is asked for {_MAX_BATCHES_ASKED} at most"
        )
    batches: list[EventBatch] = []
    with context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.setsockopt(zmq.IPV6, "[" in address)
        if curve is not None:
            curve.secure(socket)
        socket.connect(address)
        await socket.send_multipart([b"", encode_seq(first)])
        for wanted in range(first, last + 1):
            async with asyncio.timeout(timeout_s):
                frames = await socket.recv_multipart()
            seq, payload = _split_reply(frames)
            if seq != wanted:
                had = "its end" if seq is None else f"batch {seq}"
                raise WireError(f"replay has {had} where batch {wanted} is needed")
            batches.append(decode_batch(payload))
            if len(batches) % _SLICE == 0:
                await asyncio.sleep(0)
    return batches


def _split_reply(frames: Sequence[bytes]) -> tuple[int | None, bytes]:
    """`(seq, payload)` of a reply in either framing; the seq of the end marker is None."""
    if len(frames) not in (3, 4) or frames[0] != b"":
        raise WireError(f'replay of {len(frames)} frames; allowed are "", [topic], seq, payload')
    seq, payload = frames[-2:]
    return (None if seq == END_OF_REPLAY else decode_seq(seq)), payload


def _pair(context: zmq.Context[zmq.Socket[bytes]], address: str, *, bind: bool) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.PAIR)
    if bind:
        socket.bind(address)
    else:
        socket.connect(address)
    return socket
