"""Answers on a rank's recovery socket: replays of buffered batches, and snapshots of the cache.

    ROUTER ──┬── ReplayBuffer
             └── take_content: engine's thread, between two steps

One thread sends a slice of every peer's first answer in turn, so that neither a long answer nor a peer that
doesn't read holds up publishing or another answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import zmq

from app.errors import KvbeaconError, WireError
from app.events.bad_messages import BadMessages
from app.events.replay import Framing, ReplayBuffer, ReplayRequest, parse_request
from app.events.snapshot import CacheContent, CachedBlock

logger = logging.getLogger(__name__)

TakeContent = Callable[[], "Future[CacheContent]"]
"""Asks the engine for its cache's content; may raise `KvbeaconError` at once."""
Payloads = Callable[[Sequence[CachedBlock]], Iterator[bytes]]

_MAX_TRANSFERS = 64
_MAX_REQUESTS_OF_PEER = 8
_SLICE = 64
_SLICE_S = 0.002
"""A snapshot's payloads take milliseconds to make: a replay shouldn't wait for 64 of them."""
_STALLED_POLL_MS = 2
_PEER_HWM = 256
_MAX_REQUEST_BYTES = 1_024
_CONTENT_TIMEOUT_S = 30.0


class RecoveryServer:
    """Serves a bound ROUTER socket, which belongs to its thread from `start` on.

    Attributes:
        take_content: where snapshots come from; until it is set there are none.
        abandoned: answers given up because the peer was gone or read nothing for `stall_timeout_s`.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        buffer: ReplayBuffer,
        framing: Framing,
        payloads: Payloads,
        *,
        stall_timeout_s: float = 5.0,
    ) -> None:
        self.take_content: TakeContent | None = None
        self.abandoned = 0
        self._address = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._bad = BadMessages(logger, self._address, "refused at")
        self._socket = socket
        self._buffer = buffer
        self._framing = framing
        self._payloads = payloads
        self._stall_timeout_s = stall_timeout_s
        self._content: Future[CacheContent] | None = None
        self._transfers: list[_Transfer] = []
        stop_address = f"inproc://recovery-stop-{id(self)}"
        self._stopped = _pair(socket.context, stop_address, bind=True)
        self._stop = _pair(socket.context, stop_address, bind=False)
        self._thread = threading.Thread(target=self._run, name="kv-recovery", daemon=True)

    @property
    def num_pending(self) -> int:
        """Answers that are being sent or prepared, or wait for their turn. Any thread may read it."""
        return len(self._transfers)

    @property
    def refused(self) -> int:
        """Requests of a shape that is not allowed, or of a peer that has too many unanswered ones."""
        return self._bad.count

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
        """Stop serving and close the socket; answers under way are cut off."""
        self._stop.send(b"")
        self._thread.join()
        if self.abandoned or self.refused:
            logger.info(
                "%s: %d answers given up, %d requests refused", self._address, self.abandoned, self.refused
            )
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
        identity, *request_frames = frames
        try:
            request = parse_request(request_frames)
        except WireError as error:
            self._bad.add(error)
            return
        # Otherwise one peer that asks and doesn't read would take all transfers.
        if sum(transfer.identity == identity for transfer in self._transfers) == _MAX_REQUESTS_OF_PEER:
            self._bad.add(f"a peer's {_MAX_REQUESTS_OF_PEER} last requests are still unanswered")
            return
        messages = self._replay(request) if isinstance(request, ReplayRequest) else self._snapshot()
        self._transfers.append(_Transfer(identity, messages, time.monotonic() + self._stall_timeout_s))

    def _replay(self, request: ReplayRequest) -> Iterator[list[bytes]]:
        for seq, payload in self._buffer.since(request.first):
            yield self._framing.batch(seq, payload)
        yield self._framing.end()

    def _snapshot(self) -> Iterator[list[bytes] | None]:
        """The messages of a snapshot, None as long as there is none to send yet."""
        content_future = self._ask_for_content()
        deadline = time.monotonic() + _CONTENT_TIMEOUT_S
        while content_future is not None and not content_future.done() and time.monotonic() < deadline:
            yield None
        content = _result(content_future)
        if content is None:
            yield self._framing.end()
            return
        for payload in self._payloads(content.blocks):
            yield self._framing.batch(content.seq, payload)
        yield self._framing.end(content.epoch)

    def _ask_for_content(self) -> Future[CacheContent] | None:
        """One for all requests until the engine has answered: so it is asked once per step at most."""
        if self._content is None or self._content.done():
            try:
                self._content = self.take_content() if self.take_content else None
            except KvbeaconError as error:
                logger.warning("no snapshot: %s", error)
                self._content = None
        return self._content

    def _serve(self) -> bool:
        """Send a slice of every peer's first answer; whether any message went out."""
        progressed = False
        first_of_peer = {transfer.identity: transfer for transfer in reversed(self._transfers)}
        for transfer in first_of_peer.values():
            num_sent = self._send_slice(transfer)
            now = time.monotonic()
            if num_sent or transfer.is_waiting:
                progressed = progressed or num_sent > 0
                transfer.deadline = now + self._stall_timeout_s
            elif now > transfer.deadline:
                self._abandon(transfer, "it reads nothing")
        self._transfers = [transfer for transfer in self._transfers if not transfer.is_done]
        return progressed

    def _send_slice(self, transfer: _Transfer) -> int:
        until = time.monotonic() + _SLICE_S
        for num_sent in range(_SLICE):
            if num_sent and time.monotonic() > until:
                return num_sent
            frames = transfer.next_frames()
            if frames is None:
                return num_sent
            try:
                self._socket.send_multipart([transfer.identity, *frames], zmq.NOBLOCK)
            except zmq.Again:
                return num_sent
            except zmq.ZMQError as error:
                self._abandon(transfer, str(error))
                return num_sent
            transfer.sent()
        return _SLICE

    def _abandon(self, transfer: _Transfer, why: str) -> None:
        self.abandoned += 1
        transfer.is_done = True
        logger.info("answer to %s given up: %s", transfer.identity.hex(), why)


class _Transfer:
    """One answer under way: what is to be sent next, and by when.

    Attributes:
        is_done: everything was sent, or given up.
        is_waiting: the next message isn't there yet, which isn't the peer's fault.
    """

    def __init__(self, identity: bytes, messages: Iterator[list[bytes] | None], deadline: float) -> None:
        self.identity = identity
        self.deadline = deadline
        self.is_done = False
        self.is_waiting = False
        self._messages = messages
        self._unsent: list[bytes] | None = None

    def next_frames(self) -> list[bytes] | None:
        """What is to be sent next, None where there is nothing now."""
        if self._unsent is None and not self.is_done:
            try:
                self._unsent = next(self._messages)
                self.is_waiting = self._unsent is None
            except StopIteration:
                self.is_done = True
        return self._unsent

    def sent(self) -> None:
        """The last message is out."""
        self._unsent = None


def _result(future: Future[CacheContent] | None) -> CacheContent | None:
    """The content, or None where there is none: not in time, or the engine has stopped."""
    if future is None or not future.done() or future.cancelled():
        return None
    error = future.exception()
    if error is not None:
        logger.warning("no snapshot: %s", error)
        return None
    return future.result()


def _pair(context: zmq.Context[zmq.Socket[bytes]], address: str, *, bind: bool) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.PAIR)
    if bind:
        socket.bind(address)
    else:
        socket.connect(address)
    return socket
