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
    """What one rank has open: PUB for events and load, ROUTER for recovery."""

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

    def open(self, context: Context, endpoints: RankEndpoints) -> RankSockets:
        """Open all; what was opened already is closed again when one can't be.

        Raises:
            EndpointInUseError: a port was still taken in the end.
            ConfigError: an address can't be bound on this machine at all.
        """
        self._deadline = time.monotonic() + self._bind_timeout_s
        opened: list[Socket] = []
        try:
            for endpoint, kind in (
                (endpoints.events, zmq.PUB),
                (endpoints.load, zmq.PUB),
                (endpoints.replay, zmq.ROUTER),
            ):
                if endpoint is not None:
                    opened.append(context.socket(kind))
                    self._open(opened[-1], endpoint)
        except Exception:
            for socket in opened:
                socket.close(linger=0)
            raise
        rest = iter(opened)
        return RankSockets(
            events=next(rest),
            load=next(rest) if endpoints.load else None,
            recovery=next(rest) if endpoints.replay else None,
        )

    def _open(self, socket: Socket, endpoint: Endpoint) -> None:
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
        else:
            socket.connect(endpoint.address)

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
