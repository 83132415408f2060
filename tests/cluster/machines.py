"""Machines of their own on this one: each has its network, its address, its processes and a folder.

A machine is a set of Linux namespaces that its first process holds; see `machine_init.py`. Nothing of it has
a name, so nothing of it can be left behind but its folder.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from tests.cluster.switch import Switch
from tests.support.graph.serve_config import REPO

Result = TypeVar("Result")

START_S: Final = 20.0
_CLONE_NEWNET: Final = 0x40000000
_INIT: Final = Path(__file__).with_name("machine_init.py")
_NEW_NAMESPACES: Final = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc")


def why_not() -> str | None:
    """Why this computer can have no such machines; None: it can."""
    for program in ("unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"there is no {program} (package util-linux)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun can't be opened, which takes root and the kernel's TUN devices"
    tried = subprocess.run([*_NEW_NAMESPACES, "true"], capture_output=True, text=True, timeout=START_S)
    return f"no new namespaces: {tried.stderr.strip()}" if tried.returncode else None


class Machine:
    """A machine that runs, connected to the others.

    Args:
        address: its IPv4 address.
        folder: where its own files are.
        seen_as: the path at which its processes find them, the same on every machine.
        switch: what it is connected to.
    """

    def __init__(self, address: str, folder: Path, seen_as: Path, switch: Switch) -> None:
        self.address = address
        self.folder = folder
        self._switch = switch
        folder.mkdir(exist_ok=True)
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [*_NEW_NAMESPACES, sys.executable, str(_INIT), address, str(folder), str(seen_as)]
        with theirs:
            self._holder = subprocess.Popen(command, stdin=theirs.fileno())
        self._link.settimeout(START_S)
        message, cards, _, _ = socket.recv_fds(self._link, 16, 1)
        assert message == b"up", f"machine {address} doesn't start"
        switch.plug_in(address, *cards)
        for card in cards:
            os.close(card)

    @property
    def is_on(self) -> bool:
        """Whether its first process lives."""
        return self._holder.poll() is None

    def start(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process there, which writes to `log`."""
        with log.open("ab") as output:
            return subprocess.Popen(
                [*self._enter, *command],
                cwd=REPO,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def pids(self, title: str) -> list[int]:
        """Its processes whose command line begins so, by their numbers outside of it."""
        namespace = os.readlink(f"/proc/{self._holder.pid}/ns/pid_for_children")
        return [
            int(process.name)
            for process in Path("/proc").glob("[0-9]*")
            if _namespace_of(process) == namespace and _command_line(process).startswith(title)
        ]

    def call(self, function: Callable[[], Result]) -> Result:
        """What `function` returns, called in a thread whose new sockets belong to this machine."""
        results: list[Result] = []
        errors: list[BaseException] = []

        def in_network() -> None:
            try:
                _enter_network(f"/proc/{self._holder.pid}/ns/net")
                results.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=in_network)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def power_off(self) -> None:
        """End all of its processes at once, and without a word: no packet of theirs leaves it any more."""
        self._switch.cut_off(self.address)
        self.stop()

    def stop(self) -> None:
        """End all of its processes at once; the kernel closes their connections."""
        self._link.close()
        self._holder.wait(START_S)

    @property
    def _enter(self) -> list[str]:
        namespaces = f"/proc/{self._holder.pid}/ns"
        return [
            "nsenter",
            f"--net={namespaces}/net",
            f"--mount={namespaces}/mnt",
            f"--pid={namespaces}/pid_for_children",
            f"--wd={REPO}",
        ]


def _namespace_of(process: Path) -> str:
    try:
        return os.readlink(process / "ns/pid")
    except OSError:  # it has just ended
        return ""


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _enter_network(path: str) -> None:
    """Move the calling thread, and only that, into a network namespace: setns(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(path, os.O_RDONLY)
    try:
        if libc.setns(namespace, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(namespace)
