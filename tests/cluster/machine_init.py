"""The first process of a machine: `machine_init.py ADDRESS FOLDER SEEN_AS`, started in new namespaces.

It gives the machine its network card and sends the card's other end to the test process over the socket that
is its standard input. It lives as long as that socket is open. When it ends, the kernel kills all processes
of the machine and removes its namespaces: also after a crash of the test process nothing is left behind.

The card is a TUN device: what the machine sends can be read from the file, one IP packet at a time, and what
is written there the machine receives. See the kernel's Documentation/networking/tuntap.rst and netdevice(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from typing import Final

CARD: Final = b"tun0"
NETMASK: Final = "255.255.255.0"
MTU: Final = 9000
"""Bytes of a packet: large, since each costs the switch some microseconds of Python."""

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFF_UP: Final = 0x1
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
_SIOCSIFMTU: Final = 0x8922
_MS_BIND: Final = 4096


def main(address: str, folder: str, seen_as: str) -> None:
    """Set up the machine and wait for its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then buries orphans by itself
    link = socket.socket(fileno=0)
    _bind_mount(folder, seen_as)
    card = _open_card(address)
    socket.send_fds(link, [b"up"], [card])
    os.close(card)
    link.recv(1)


def _bind_mount(folder: str, seen_as: str) -> None:
    """Show `folder` at another path, in this machine only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(folder.encode(), seen_as.encode(), None, _MS_BIND, None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), seen_as)


def _open_card(address: str) -> int:
    card = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(card, _TUNSETIFF, struct.pack("16sH22x", CARD, _IFF_TUN | _IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFADDR, _of_address(address))
        fcntl.ioctl(control, _SIOCSIFNETMASK, _of_address(NETMASK))
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", CARD, MTU))
        for name in (CARD, b"lo"):
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name, _IFF_UP))
    return card


def _of_address(address: str) -> bytes:
    return struct.pack("16sHxx4s16x", CARD, socket.AF_INET, socket.inet_aton(address))


if __name__ == "__main__":
    main(*sys.argv[1:])
