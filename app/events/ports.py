"""tcp endpoints of a row of ranks: parsing `tcp://HOST:PORT`, and what kind of host it names."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from app.errors import ConfigError

MAX_PORT = 65_535
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_BRACKETED = re.compile(r"\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]")
_INTERFACE = re.compile(r"(?:eth|en[ops]|ib|bond|br|wlan|wl[ops])[0-9][A-Za-z0-9_]*")
"""What Linux calls its interfaces; the ranks' machines may have others than this one."""


class UnusableEndpointError(ConfigError):
    """An endpoint breaks one of the rules that make the descriptor null."""


@dataclass(frozen=True, slots=True)
class PortSpan:
    """One tcp port per rank, in rank order, on `host` (verbatim, IPv6 in brackets).

    `ports` is empty where the system chooses each port: port 0 was asked for.
    """

    host: str
    ports: range

    def __str__(self) -> str:
        return f"{self.ports.start}..{self.ports.stop - 1}" if self.ports else "chosen by the system"

    @property
    def is_chosen(self) -> bool:
        """Whether the system chooses the ports."""
        return not self.ports

    @property
    def is_valid(self) -> bool:
        """Whether every port exists."""
        return self.is_chosen or (self.ports.start >= 1 and self.ports.stop - 1 <= MAX_PORT)

    @property
    def is_wildcard(self) -> bool:
        """Whether the host is every address of the machine."""
        return is_wildcard(self.host)

    @property
    def is_local(self) -> bool:
        """Whether the host can be nothing but this machine: every address, loopback, or an interface."""
        return self.is_wildcard or is_loopback(self.host) or is_interface(self.host)

    def port(self, rank: int) -> int:
        """The port of `rank`, which may be beyond the span; 0 where the system chooses."""
        return 0 if self.is_chosen else self.ports.start + rank

    def chosen(self) -> PortSpan:
        """The same host with ports that the system chooses."""
        return PortSpan(self.host, range(0))

    def overlaps(self, other: PortSpan) -> bool:
        """Whether a port is in both."""
        if self.is_chosen or other.is_chosen:
            return False
        return self.ports.start < other.ports.stop and other.ports.start < self.ports.stop


def port_span(key: str, endpoint: str, count: int) -> PortSpan | None:
    """The `count` ports that begin at `endpoint`; None for inproc and ipc, which have no ports.

    Port 0 leaves each to the system.

    Raises:
        UnusableEndpointError: another transport, or a host or port that can't be used; names `key`.
    """
    given = f"{key} = {endpoint!r}"
    transport, _, rest = endpoint.partition("://")
    if transport in ("inproc", "ipc") and rest:
        return None
    if transport != "tcp":
        raise UnusableEndpointError(f"{given}: allowed are tcp://HOST:PORT, ipc://PATH and inproc://NAME")
    host, colon, port = rest.rpartition(":")
    if not colon or not _INTEGER.fullmatch(port):
        raise UnusableEndpointError(f"{given}: the port is missing or not an integer")
    if fault := host_fault(host):
        raise UnusableEndpointError(f"{given}: {fault}")
    if "%" in host:
        raise UnusableEndpointError(f"{given}: a zone is known to this machine alone; leave it out")
    span = PortSpan(host, range(int(port), int(port) + count) if int(port) else range(0))
    if not span.is_valid:
        raise UnusableEndpointError(f"{given}: needs the ports {span}; allowed are 0..{MAX_PORT}")
    return span


def is_wildcard(host: str) -> bool:
    """Whether `host` is `*`, `0.0.0.0`, `[::]` or another spelling of them."""
    address = _ip(host)
    return host == "*" or (address is not None and address.is_unspecified)


def is_loopback(host: str) -> bool:
    """Whether `host` is an address of this machine alone."""
    address = _ip(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def is_interface(host: str) -> bool:
    """Whether `host` is a network interface's name, of this machine or as Linux has them."""
    return bool(_INTERFACE.fullmatch(host)) or host in {name for _, name in socket.if_nameindex()}


def is_name(host: str) -> bool:
    """Whether `host` must be resolved before it can be bound or dialled."""
    return host != "*" and _ip(host) is None


def is_reached_at(host: str, dialled: str) -> bool:
    """Whether what listens at `host` is reached by one who dials `dialled`."""
    return is_wildcard(host) or _without_alias(host) == _without_alias(dialled)


def dial_host(host: str, node_host: str) -> str:
    """The host under which `host` is reached: `node_host` for a wildcard; IPv6 in brackets."""
    dialled = node_host if is_wildcard(host) else host
    return f"[{dialled}]" if ":" in dialled and not dialled.startswith("[") else dialled


def host_fault(host: str) -> str | None:
    """Why `host` can't stand between `tcp://` and a port; None if it can.

    It can be `*`, an IPv4 address, a host's or an interface's name, or an IPv6 address in brackets.
    """
    if not host.strip():
        return "the host is empty"
    if host.startswith("["):
        return None if _ip(host) else f"{host!r} holds no IPv6 address"
    if ":" in host:
        return f"an IPv6 address needs brackets: {f'[{host}]'!r}"
    return None if host == "*" or _NAME.fullmatch(host) else f"{host!r} is no host"


def _without_alias(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        if bracketed := _BRACKETED.fullmatch(host):
            return ipaddress.IPv6Address(bracketed[1])
        return ipaddress.ip_address(host)
    except ValueError:
        return None
