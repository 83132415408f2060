"""Ports for servers that tests start."""

from __future__ import annotations

import itertools
import os
import random
import socket
from contextlib import ExitStack

# Below the ports that outgoing connections take; never the same one twice, and workers of pytest-xdist (gw0,
# gw1, …) keep out of each other's way.
_SLICES = 8
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _SLICES
_ports = range(20_000 + 8 * _worker, 32_000, 8 * _SLICES)
_candidates = itertools.cycle(_ports)
for _ in range(random.SystemRandom().randrange(len(_ports))):
    next(_candidates)


def find_free_ports(count: int) -> int:
    """The first of `count` consecutive free ports, 8 at most."""
    while True:
        base = next(_candidates)
        with ExitStack() as probes:
            try:
                for port in range(base, base + count):
                    probes.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return base
