"""A SUB socket that knows whether it is connected, for asyncio."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from app.errors import WireError
from app.events.curve import HANDSHAKE_FAILED, CurveClient
from app.events.schema import MAX_FRAME_BYTES

_RECEIVE_HWM = 1_000
"""Messages that wait at a subscriber; the publisher keeps `hwm` more for it. What is dropped is recovered."""
_MAX_SOCKETS = 65_000
_HEARTBEAT_MS = 2_000
_HEARTBEAT_TIMEOUT_MS = 6_000
_MAX_RECONNECT_MS = 1_000
_MONITORED = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | HANDSHAKE_FAILED


@functools.cache
def subscriber_context() -> zmq.asyncio.Context:
    """The process's context for subscribers: ZMQ's default of 1,023 sockets is too few for many ranks."""
    context = zmq.asyncio.Context()
    context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
    return context


class Connection:
    """One SUB socket connected to one address.

    ZMQ reconnects by itself and silently, and nothing in a message says whether it was sent before or after
    the publisher behind the address was replaced. So the socket is monitored: `broke` says that what came
    last may not follow what came before.

    Attributes:
        trouble: why there is no connection, as far as is known; means nothing while there is one.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        address: str,
        topics: Iterable[bytes],
        curve: CurveClient | None = None,
    ) -> None:
        """Begins to connect; `curve` None connects without encryption.

        Raises:
            WireError: `address` is none that can be dialled.
        """
        self.address = address
        self._connected = False
        self._failed = False
        self.trouble = f"no publisher at {address}"
        self._is_encrypted = curve is not None
        self._broke = False
        self._polling: asyncio.Future[Any] | None = None
        self._socket = context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, "[" in address)
        self._socket.setsockopt(zmq.RCVHWM, _RECEIVE_HWM)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, _MAX_RECONNECT_MS)
        if curve is not None:
            curve.secure(self._socket)
        for topic in topics:
            self._socket.subscribe(topic)
        self._monitor = self._socket.get_monitor_socket(_MONITORED)
        # Plain views of the two sockets: receiving without waiting needs no future.
        self._received: zmq.Socket[bytes] = zmq.Socket.shadow(self._socket)
        self._monitored: zmq.Socket[bytes] = zmq.Socket.shadow(self._monitor)
        self._poller = zmq.asyncio.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise WireError(f"{address!r} can't be dialled: {zmq.strerror(error.errno or 0)}") from None

    async def wait_connected(self, timeout_s: float) -> bool:
        """Whether the handshake succeeded within `timeout_s`; the subscriptions go out with it.

        Returns at once when it failed: after a refusal ZMQ doesn't try again, otherwise it tries too often.
        """
        deadline = time.monotonic() + timeout_s
        while not self.handshake_failed() and not self._connected:
            remaining_ms = int((deadline - time.monotonic()) * 1000)
            if remaining_ms <= 0:
                break
            await self._monitor.poll(remaining_ms)
        return self._connected

    def notify(self, callback: Callable[[], object]) -> None:
        """Call `callback` once there is something to receive or the connection has changed."""
        if self._polling is not None and not self._polling.done():
            return
        self._polling = asyncio.ensure_future(self._poller.poll())
        self._polling.add_done_callback(lambda future: None if future.cancelled() else callback())

    def receive(self, limit: int) -> list[list[bytes]]:
        """The frames of at most `limit` messages that are here already."""
        messages: list[list[bytes]] = []
        try:
            while len(messages) < limit:
                messages.append(self._received.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            pass
        return messages

    def broke(self) -> bool:
        """Whether the connection was ever lost; true for good, even after ZMQ has reconnected.

        Asked after `receive`, it covers all messages received: the loss is seen before anything is
        received over a new connection.
        """
        self._read_monitor()
        return self._broke

    def handshake_failed(self) -> bool:
        """Whether the last handshake failed; `trouble` says why."""
        self._read_monitor()
        return self._failed

    def close(self) -> None:
        """Close at once; what was not received is lost. A second call does nothing."""
        if self._socket.closed:
            return
        if self._polling is not None:
            self._polling.cancel()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def _read_monitor(self) -> None:
        try:
            while True:
                self._record(parse_monitor_message(self._monitored.recv_multipart(zmq.NOBLOCK))["event"])
        except zmq.Again:
            pass

    def _record(self, event: int) -> None:
        self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        self._broke = self._broke or event == zmq.EVENT_DISCONNECTED
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._failed = False
        elif event & HANDSHAKE_FAILED:
            self._failed = True
            self.trouble = f"{self.address}: {self._why_failed(event)}"
        elif event == zmq.EVENT_CONNECTED and not self._failed:
            self.trouble = f"{self.address}: connected, but no handshake: it hangs, or is no publisher"

    def _why_failed(self, event: int) -> str:
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "the publisher refused this client's key"
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return "handshake failed: does the publisher use CURVE?"
        # A process that has just died looks like this, and a server that doesn't like our greeting or key.
        other = "its CURVE key is another one" if self._is_encrypted else "wants CURVE"
        return f"connection lost in the handshake: the publisher has died, or {other}"
