"""Ports for servers that tests start."""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack

# Below the ports that outgoing connections take; one only comes again after all others, and workers of
# pytest-xdist (gw0, gw1, …) keep out of each other's way. Events without a replay have their
# load ports 1,024 behind: there each worker has as many again, which are given to no test.
_WORKERS = 6
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_PER_WORKER = 1000
_APART = 2048


class _Ports:
    """The ports of one worker, given out in turn."""

    def __init__(self, ports: range) -> None:
        self._ports = ports
        self._next = random.SystemRandom().choice(ports)

    def take(self, count: int) -> range:
        """The next `count` in a row."""
        if self._next + count > self._ports.stop:
            self._next = self._ports.start
        taken = range(self._next, self._next + count)
        self._next = taken.stop
        return taken


_first = 20_000 + _APART * _worker
_own = _Ports(range(_first, _first + _PER_WORKER))


def find_free_ports(count: int) -> int:
    """The first of `count` consecutive free ports."""
    while True:
        ports = _own.take(count)
        with ExitStack() as probes:
            try:
                for port in ports:
                    probes.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return ports.start
