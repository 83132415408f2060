"""A client of all of a rank's sockets, made of plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from app.events.curve import HANDSHAKE_FAILED, CurveClient
from app.events.publisher_info import PublisherInfo
from app.events.schema import encode_seq


class BareClient:
    """One plain socket at each of a rank's three; asks for a replay and counts what comes."""

    def __init__(self, info: PublisherInfo, curve: CurveClient | None) -> None:
        self._context = zmq.Context()
        address = info.address
        self._events, self._failed_events = self._connect(zmq.SUB, address.event_endpoint, curve)
        self._load, self._failed_load = self._connect(zmq.SUB, address.load_endpoint, curve)
        self._replay, self._failed_replay = self._connect(zmq.DEALER, address.replay_endpoint, curve)
        self._replay.send_multipart([b"", encode_seq(0)])

    def received(self) -> list[bool]:
        """Whether anything has come over events, load and replay."""
        return [bool(each.poll(0)) for each in (self._events, self._load, self._replay)]

    def was_refused(self) -> bool:
        """Whether each of the three sockets saw a handshake fail."""
        return all(each.poll(0) for each in (self._failed_events, self._failed_load, self._failed_replay))

    def close(self) -> None:
        for monitor in (self._failed_events, self._failed_load, self._failed_replay):
            monitor.close(linger=0)
        for each in (self._events, self._load, self._replay):
            each.disable_monitor()
            each.close(linger=0)
        self._context.term()

    def _connect(self, kind: int, endpoint: str | None, curve: CurveClient | None) -> tuple[Any, Any]:
        assert endpoint is not None
        one = self._context.socket(kind)
        one.setsockopt(zmq.LINGER, 0)
        if kind == zmq.SUB:
            one.subscribe(b"")
        if curve is not None:
            curve.secure(one)
        failed = one.get_monitor_socket(HANDSHAKE_FAILED)
        one.connect(endpoint)
        return one, failed


MakeBareClient = Callable[[PublisherInfo, CurveClient | None], BareClient]
