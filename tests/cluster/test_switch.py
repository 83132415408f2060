"""The machines and the switch between them: what passes, what doesn't, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.machines import Machine, why_not
from tests.cluster.switch import Faults, Forwarder, Switch
from tests.support.deadlines import wait_until
from tests.support.graph.serve_config import REPO

ONE, TWO, THREE = "10.77.0.1", "10.77.0.2", "10.77.0.3"
PORT = 80
UDP, TCP = 17, 6
needs_namespaces = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def packet(source: str, to: str, port: int = PORT, protocol: int = TCP) -> bytes:
    """An IPv4 header and the first bytes of what it carries."""
    addresses = socket.inet_aton(source) + socket.inet_aton(to)
    return b"\x45" + bytes(8) + bytes([protocol]) + bytes(2) + addresses + b"\x10\x00" + port.to_bytes(2)


def test_without_faults_every_ipv4_packet_passes() -> None:
    forwarder = Forwarder()
    assert forwarder.passes(packet(ONE, TWO))
    assert not forwarder.passes(b"\x60" + bytes(50)), "IPv6"


def test_a_machine_that_is_cut_off_neither_sends_nor_receives() -> None:
    forwarder = Forwarder()
    forwarder.obey(Faults(cut_off=(TWO,)))
    passing = [forwarder.passes(packet(*pair)) for pair in ((ONE, TWO), (TWO, ONE), (ONE, THREE))]
    assert passing == [False, False, True]
    forwarder.obey(Faults())
    assert forwarder.passes(packet(ONE, TWO))


def test_a_blocked_port_is_blocked_in_both_directions_and_for_tcp_only() -> None:
    forwarder = Forwarder()
    forwarder.obey(Faults(blocked_ports=(PORT, 4096)))
    assert not forwarder.passes(packet(ONE, TWO, PORT))
    assert not forwarder.passes(packet(TWO, ONE, 1)), "port 4096 is its source"
    assert forwarder.passes(packet(ONE, TWO, PORT, UDP))


def test_a_share_of_packets_is_lost_and_the_same_ones_for_the_same_seed() -> None:
    def passed() -> list[bool]:
        forwarder = Forwarder(seed=1)
        forwarder.obey(Faults(loss=0.25))
        return [forwarder.passes(packet(ONE, TWO)) for _ in range(2000)]

    assert passed() == passed()
    assert 1400 < sum(passed()) < 1600


@pytest.fixture
def switch() -> Iterator[Switch]:
    switch = Switch()
    yield switch
    switch.stop()


@pytest.fixture
def machines(switch: Switch, tmp_path: Path) -> Iterator[list[Machine]]:
    (tmp_path / "own").mkdir()
    machines = [Machine(address, tmp_path / address, tmp_path / "own", switch) for address in (ONE, TWO)]
    yield machines
    for machine in machines:
        machine.stop()


class Line:
    """A TCP connection from the second machine to the first."""

    def __init__(self, machines: list[Machine]) -> None:
        self._server = machines[0].call(lambda: socket.create_server((ONE, PORT)))
        self.far = machines[1].call(lambda: socket.create_connection((ONE, PORT), timeout=10))
        self.near, _ = self._server.accept()
        self.near.settimeout(10)

    def round_trip_s(self) -> float:
        """Seconds until a byte is there and another one is back."""
        start = time.monotonic()
        self.far.sendall(b"?")
        assert self.near.recv(1) == b"?"
        self.near.sendall(b"!")
        assert self.far.recv(1) == b"!"
        return time.monotonic() - start

    def close(self) -> None:
        """Close all three sockets."""
        for each in (self.far, self.near, self._server):
            each.close()


@pytest.fixture
def line(machines: list[Machine]) -> Iterator[Line]:
    line = Line(machines)
    yield line
    line.close()


@needs_namespaces
def test_machines_reach_each_other_and_a_delay_adds_up(switch: Switch, line: Line) -> None:
    undelayed = statistics.median(line.round_trip_s() for _ in range(20))
    with switch.failing(delay_s=0.05):
        assert line.round_trip_s() >= 0.1
    assert undelayed < 0.05


@needs_namespaces
def test_what_is_sent_during_a_cut_arrives_after_it(switch: Switch, line: Line) -> None:
    with switch.failing(cut_off=(TWO,)):
        line.far.sendall(b"x")
        line.near.settimeout(0.5)
        with pytest.raises(TimeoutError):
            line.near.recv(1)
    line.near.settimeout(10)
    assert line.near.recv(1) == b"x"


@needs_namespaces
def test_loss_costs_tcp_time_but_no_byte(switch: Switch, line: Line) -> None:
    sent = os.urandom(200_000)
    with switch.failing(loss=0.05):
        line.far.sendall(sent)
        received = b""
        while len(received) < len(sent):
            received += line.near.recv(65_536)
    assert received == sent


@needs_namespaces
def test_a_blocked_port_accepts_no_connection(switch: Switch, machines: list[Machine]) -> None:
    servers = [machines[0].call(partial(socket.create_server, (ONE, port))) for port in (80, 81)]
    with switch.failing(blocked_ports=(80,)):
        machines[1].call(lambda: socket.create_connection((ONE, 81), timeout=10)).close()
        with pytest.raises(TimeoutError):
            machines[1].call(lambda: socket.create_connection((ONE, 80), timeout=0.5))
    for server in servers:
        server.close()


@needs_namespaces
def test_a_machine_sees_its_own_processes_and_files_only(machines: list[Machine], tmp_path: Path) -> None:
    first, second = machines
    (first.folder / "note").write_text("first")
    (second.folder / "note").write_text("second")
    log = tmp_path / "log"
    first.start(["sh", "-c", f"cat {tmp_path}/own/note; ls /proc | grep -c '^[0-9]'"], os.environ, log).wait()
    note, num_processes = log.read_text().replace("first", "first ").split()
    assert note == "first"
    assert int(num_processes) < 10


@needs_namespaces
def test_powering_off_ends_every_process_without_a_word(
    machines: list[Machine], line: Line, tmp_path: Path
) -> None:
    sleeper = machines[1].start(["sleep", "1000"], os.environ, tmp_path / "log")
    machines[1].power_off()
    assert sleeper.wait(10) != 0
    assert not machines[1].is_on
    line.near.settimeout(0.5)
    with pytest.raises(TimeoutError):  # a closed connection would be heard of
        line.near.recv(1)


@needs_namespaces
def test_another_machine_can_take_the_address(
    switch: Switch, machines: list[Machine], tmp_path: Path
) -> None:
    machines[1].power_off()
    machines[1] = Machine(TWO, tmp_path / TWO, tmp_path / "own", switch)
    line = Line(machines)
    assert line.round_trip_s() < 10
    line.close()


CRASHING = """
import sys, time
from pathlib import Path
from tests.cluster.machines import Machine
from tests.cluster.switch import Switch

folder = Path(sys.argv[1])
(folder / "own").mkdir()
machine = Machine("10.77.0.1", folder / "machine", folder / "own", Switch())
machine.start(["sleep", "12345"], {}, folder / "log")
while not machine.pids("sleep"):
    time.sleep(0.01)
print(*machine.pids(""), flush=True)
time.sleep(1000)
"""


@needs_namespaces
def test_after_a_crash_of_the_test_process_nothing_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CRASHING, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        pids = process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
    assert len(pids) == 2, "the machine's first process, and the sleeper"
    wait_until(lambda: not any(Path("/proc", pid.decode()).exists() for pid in pids), "both gone")
