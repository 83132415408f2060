"""A network switch in user space: it carries IP packets between machines, and can fail in chosen ways.

It is a process of its own, so that the machines' traffic doesn't wait for the test: `python -m
tests.cluster.switch` with a socket as standard input. Over the socket it receives the machines' cards (TUN
devices, see `machine_init.py`) and `Faults`, and acknowledges each. It ends when the socket is closed.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from tests.support.graph.serve_config import REPO

_MAX_PACKET: Final = 65_536
_MAX_MESSAGE: Final = 65_536
_MAX_BATCH: Final = 64
"""Packets of one card that are carried before the other cards have their turn."""
_TCP: Final = 6
_ACKNOWLEDGED: Final = b"ok"


@dataclass(frozen=True)
class Faults:
    """What is wrong with the network, at the same time.

    Attributes:
        cut_off: addresses of machines that no packet leaves or reaches.
        blocked_ports: TCP ports to or from which no packet passes, as behind a firewall that drops.
        loss: the share of packets that are lost, chosen at random.
        delay_s: how long every packet takes.
    """

    cut_off: tuple[str, ...] = ()
    blocked_ports: tuple[int, ...] = ()
    loss: float = 0.0
    delay_s: float = 0.0


class Forwarder:
    """Decides what becomes of each packet.

    Args:
        seed: of what is lost.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.obey(Faults())

    def obey(self, faults: Faults) -> None:
        """Replace all faults by these."""
        self._faults = faults
        self._cut_off = {socket.inet_aton(address) for address in faults.cut_off}
        self._blocked_ports = {port.to_bytes(2, "big") for port in faults.blocked_ports}

    @property
    def delay_s(self) -> float:
        """How long a packet takes now."""
        return self._faults.delay_s

    def passes(self, packet: bytes) -> bool:
        """Whether this IPv4 packet arrives; other protocols' never do."""
        if packet[0] >> 4 != 4:
            return False
        if self._cut_off and (packet[12:16] in self._cut_off or packet[16:20] in self._cut_off):
            return False
        if self._blocked_ports and packet[9] == _TCP:
            header = (packet[0] & 15) * 4
            ports = packet[header : header + 2], packet[header + 2 : header + 4]
            if not self._blocked_ports.isdisjoint(ports):
                return False
        return not self._faults.loss or self._random.random() >= self._faults.loss


class Switch:
    """The test process's side: starts the switch and tells it what to do."""

    def __init__(self) -> None:
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.switch"], cwd=REPO, stdin=theirs.fileno()
            )
        self._faults = Faults()

    def plug_in(self, address: str, card: int) -> None:
        """Carry packets for the machine at `address`, which takes the place of one that had it before."""
        self._send({"address": address}, card)
        self.obey(replace(self._faults, cut_off=tuple(set(self._faults.cut_off) - {address})))

    def obey(self, faults: Faults) -> None:
        """Fail in these ways, and in no others, from now on."""
        self._faults = faults
        self._send({"faults": asdict(faults)})

    def cut_off(self, *addresses: str) -> None:
        """Cut these machines off too, whatever else is wrong."""
        self.obey(replace(self._faults, cut_off=(*self._faults.cut_off, *addresses)))

    @contextmanager
    def failing(self, **faults: Any) -> Iterator[None]:
        """Fail so within the context, then not at all."""
        self.obey(Faults(**faults))
        try:
            yield
        finally:
            self.obey(Faults())

    def stop(self) -> None:
        """End it."""
        self._link.close()
        self._process.wait(10)

    def _send(self, message: dict[str, Any], *cards: int) -> None:
        socket.send_fds(self._link, [json.dumps(message).encode()], list(cards))
        answer = self._link.recv(_MAX_MESSAGE)
        assert answer == _ACKNOWLEDGED, f"the switch answers {answer!r}"


class _SwitchProcess:
    """The switch itself."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._forwarder = Forwarder()
        self._cards: dict[bytes, int] = {}
        self._on_the_way: list[tuple[float, int, bytes]] = []
        """When a packet is due, a number that keeps the order, and the packet; a heap."""
        self._numbers = itertools.count()
        self._selector = selectors.EpollSelector()
        self._selector.register(link, selectors.EVENT_READ, self._hear)

    def run(self) -> None:
        """Carry packets until the socket is closed."""
        self._is_open = True
        while self._is_open:
            wait_s = max(0.0, self._on_the_way[0][0] - time.monotonic()) if self._on_the_way else None
            for key, _ in self._selector.select(wait_s):
                key.data()
            while self._on_the_way and self._on_the_way[0][0] <= time.monotonic():
                _, _, packet = heapq.heappop(self._on_the_way)
                self._deliver(packet)

    def _hear(self) -> None:
        message, cards, _, _ = socket.recv_fds(self._link, _MAX_MESSAGE, 1)
        if not message:
            self._is_open = False
            return
        told = json.loads(message)
        if "faults" in told:
            self._forwarder.obey(Faults(**told["faults"]))
        else:
            self._plug_in(socket.inet_aton(told["address"]), *cards)
        self._link.send(_ACKNOWLEDGED)

    def _plug_in(self, address: bytes, card: int) -> None:
        if address in self._cards:
            self._unplug(address)
        os.set_blocking(card, False)
        self._cards[address] = card
        self._selector.register(card, selectors.EVENT_READ, lambda: self._carry(address, card))

    def _unplug(self, address: bytes) -> None:
        card = self._cards.pop(address)
        self._selector.unregister(card)
        os.close(card)

    def _carry(self, address: bytes, card: int) -> None:
        """Take what the machine sends."""
        for _ in range(_MAX_BATCH):
            try:
                packet = os.read(card, _MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:  # the machine is gone, and its card with it
                self._unplug(address)
                return
            if not self._forwarder.passes(packet):
                continue
            delay_s = self._forwarder.delay_s
            if delay_s:
                due = time.monotonic() + delay_s
                heapq.heappush(self._on_the_way, (due, next(self._numbers), packet))
            else:
                self._deliver(packet)

    def _deliver(self, packet: bytes) -> None:
        card = self._cards.get(packet[16:20])
        if card is None:
            return
        try:
            os.write(card, packet)
        except OSError:  # its queue is full, or it is gone: as on a wire, no side is told
            return


if __name__ == "__main__":
    _SwitchProcess(socket.socket(fileno=0)).run()
