"""Ports for servers that tests start."""

from __future__ import annotations

import itertools
import random
import socket
from contextlib import ExitStack

# Below the ports that outgoing connections take; never the same one twice.
_candidates = itertools.cycle(range(20_000, 32_000, 8))
for _ in range(random.SystemRandom().randrange(1500)):
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
