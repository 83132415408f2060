"""A link between a publisher and its subscribers that loses, repeats and reorders messages."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable

import zmq

Message = list[bytes]
Fault = Callable[[Message], Iterable[Message]]
"""What comes out of the link when a message goes in."""


class FaultyLink:
    """A SUB that is connected to the publisher, and a bound PUB that sends on what `fault` lets through.

    To its subscribers it hides that the publisher went away: their connection to the link stays.
    """

    def __init__(self, publisher_port: int, fault: Fault) -> None:
        self.num_received = 0
        self._context = zmq.Context()
        self._incoming = self._context.socket(zmq.SUB)
        self._incoming.setsockopt(zmq.RCVHWM, 0)
        self._incoming.setsockopt(zmq.RECONNECT_IVL, 10)
        self._incoming.subscribe(b"")
        self._outgoing = self._context.socket(zmq.PUB)
        self._outgoing.setsockopt(zmq.SNDHWM, 0)
        self.port = self._outgoing.bind_to_random_port("tcp://127.0.0.1")
        self._fault = fault
        self._incoming.connect(f"tcp://127.0.0.1:{publisher_port}")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faulty-link")
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._incoming.close(linger=0)
        self._outgoing.close(linger=0)
        self._context.term()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._incoming.poll(20):
                message = self._incoming.recv_multipart()
                self.num_received += 1
                for passed in self._fault(message):
                    self._outgoing.send_multipart(passed)


def drop_every(n: int) -> Fault:
    count = 0

    def fault(message: Message) -> Iterable[Message]:
        nonlocal count
        count += 1
        return [] if count % n == 0 else [message]

    return fault


def swap_neighbours() -> Fault:
    """Each second message overtakes the one before it; the last of an odd number stays in the link."""
    held: list[Message] = []

    def fault(message: Message) -> Iterable[Message]:
        if not held:
            held.append(message)
            return []
        return [message, held.pop()]

    return fault


def send_twice(message: Message) -> Iterable[Message]:
    return [message, message]


def chaos(seed: int) -> Fault:
    """Some are lost, some come twice, some late."""
    rng, late = random.Random(seed), list[Message]()

    def fault(message: Message) -> Iterable[Message]:
        out = [] if rng.random() < 0.1 else [message]
        if rng.random() < 0.1:
            late.append(message)
        if late and rng.random() < 0.1:
            out.append(late.pop(0))
        return out

    return fault
