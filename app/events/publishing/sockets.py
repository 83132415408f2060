"""Opens the sockets of one rank's publisher, all or none."""

from __future__ import annotations

import time
from dataclasses import dataclass

import zmq

from app.errors import ConfigError, EndpointInUseError
from app.events.endpoints import Endpoint, RankEndpoints
from app.events.publishing.curve_server import CurveServer
from app.events.publishing.recovery_server import RecoveryServer

_BIND_RETRY_S = 0.05

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]


@dataclass(frozen=True, slots=True)
class RankSockets:
    """What one rank has open: PUB for events and load, ROUTER for recovery.

    `endpoints` has the ports and addresses that the system chose where it was left to choose.
    """

    endpoints: RankEndpoints
    events: Socket
    load: Socket | None
    recovery: Socket | None


class SocketOpener:
    """Opens sockets for one rank.

    Args:
        rank: named in errors.
        hwm: batches that may wait for one subscriber.
        bind_timeout_s: how long a taken port is tried for in all: its last owner may still be going away.
        curve: encrypts each socket, if given.
    """

    def __init__(self, rank: int, hwm: int, bind_timeout_s: float, curve: CurveServer | None) -> None:
        self._rank = rank
        self._hwm = hwm
        self._bind_timeout_s = bind_timeout_s
        self._curve = curve
        self._deadline = 0.0
        self._opened: list[Socket] = []

    def open(self, context: Context, endpoints: RankEndpoints) -> RankSockets:
        """Open all; what was opened already is closed again when one can't be.

        Raises:
            EndpointInUseError: a port was still taken in the end.
            ConfigError: an address can't be bound on this machine at all.
        """
        self._deadline = time.monotonic() + self._bind_timeout_s
        self._opened = []
        try:
            events, at_events = self._open(context.socket(zmq.PUB), endpoints.events)
            load, at_load = self._open_optional(context, zmq.PUB, endpoints.load)
            recovery, at_replay = self._open_optional(context, zmq.ROUTER, endpoints.replay)
        except Exception:
            for socket in self._opened:
                socket.close(linger=0)
            raise
        return RankSockets(RankEndpoints(at_events, at_replay, at_load), events, load, recovery)

    def _open_optional(
        self, context: Context, kind: int, endpoint: Endpoint | None
    ) -> tuple[Socket | None, Endpoint | None]:
        return (None, None) if endpoint is None else self._open(context.socket(kind), endpoint)

    def _open(self, socket: Socket, endpoint: Endpoint) -> tuple[Socket, Endpoint]:
        """`socket` open, and where it is."""
        self._opened.append(socket)
        socket.setsockopt(zmq.IPV6, "[" in endpoint.address)
        if socket.type == zmq.ROUTER:
            RecoveryServer.prepare(socket)
        else:
            socket.setsockopt(zmq.SNDHWM, self._hwm)
            # Without this a full queue of some subscriber would go unnoticed; see `PublishingThread`.
            socket.setsockopt(zmq.XPUB_NODROP, 1)
        if self._curve:
            self._curve.secure(socket, endpoint.address)
        if endpoint.binds:
            self._bind(socket, endpoint.address)
            return socket, endpoint.bound_at(socket.getsockopt_string(zmq.LAST_ENDPOINT))
        try:
            socket.connect(endpoint.address)
        except zmq.ZMQError as error:
            raise ConfigError(f"rank {self._rank} can't connect to {endpoint.address}: {error}") from None
        return socket, endpoint

    def _bind(self, socket: Socket, address: str) -> None:
        while True:
            try:
                socket.bind(address)
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE:
                    raise ConfigError(f"rank {self._rank} can't bind {address}: {error}") from None
                if time.monotonic() > self._deadline:
                    raise EndpointInUseError(
                        f"rank {self._rank} can't bind {address}: in use by another process "
                        f"for {self._bind_timeout_s:g} s; free the port or choose another"
                    ) from None
                time.sleep(_BIND_RETRY_S)
            else:
                return
