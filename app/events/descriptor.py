"""Reads in any server's `/server_info` which publishers there are to dial.

`kv_events` is SGLang's contract: one host for all ranks, and rank r at every base port + r. `publishers` is
kvbeacon's own: an entry for each rank, with its host and ports.

Unknown keys are ignored, null stands for an optional key that doesn't apply, and everything else that the
contract doesn't allow is refused with a `WireError` that names the key, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from app.errors import WireError
from app.events.curve import is_key
from app.events.ports import MAX_PORT, PortSpan, dial_host, host_fault
from app.events.publisher_info import PublisherAddress
from app.settings.base import MAX_DP_SIZE

_WHERE = "kv_events"
_MAX_BLOCK_SIZE = 2**31 - 1
_MAX_SHOWN = 80

Object = dict[Any, Any]


@dataclass(frozen=True)
class Publishers:
    """What `/server_info` says of the ranks' publishers.

    Attributes:
        to_dial: those that can be followed, in rank order.
        not_publishing: the other ranks → `disabled` or `unreachable`.
        hosts_are_known: whether each rank's own host is described. False: the answer has `kv_events` only,
            and ranks on other nodes than that one host aren't seen.
    """

    to_dial: tuple[PublisherAddress, ...]
    not_publishing: Mapping[int, str] = field(default_factory=dict)
    hosts_are_known: bool = True


def read_publishers(info: Mapping[str, object], server_host: str) -> Publishers:
    """The publishers of all ranks: from `publishers` where it is there, else from `kv_events`.

    Args:
        info: the answer of `/server_info`.
        server_host: as of `read_descriptor`.

    Raises:
        WireError: what is there is no list of publishers, or no descriptor.
    """
    listed = info.get("publishers")
    if listed is None:
        return Publishers(read_descriptor(info.get("kv_events"), server_host), hosts_are_known=False)
    if not isinstance(listed, list):
        raise WireError(f"publishers = {_shown(listed)}; allowed is a list")
    to_dial: list[PublisherAddress] = []
    not_publishing: dict[int, str] = {}
    for index, entry in enumerate(listed):
        try:
            state = msgspec.convert(entry, _ListedState)
            if state.state == "publishing":
                to_dial.append(_dialable(msgspec.convert(entry, PublisherAddress), server_host))
            else:
                not_publishing[state.rank] = state.state
        except (msgspec.ValidationError, ValueError) as error:
            raise WireError(f"publishers[{index}]: {error}") from None
    return Publishers(tuple(sorted(to_dial, key=lambda each: each.rank)), not_publishing)


class _ListedState(msgspec.Struct):
    """What every entry of `publishers` has."""

    rank: int
    state: str


def _dialable(address: PublisherAddress, server_host: str) -> PublisherAddress:
    """The address with a host in place of a wildcard. Raises `ValueError` when it can't be dialled."""
    host = dial_host(address.host, server_host)
    if host_fault(host):
        raise ValueError(f"host = {_shown(address.host)}; allowed are '*', a host's name and an IP address")
    for key in ("event_port", "replay_port", "load_port"):
        port = getattr(address, key)
        if not (1 <= port <= MAX_PORT if port is not None else key != "event_port"):
            raise ValueError(f"{key} = {_shown(port)}; allowed are the integers 1..{MAX_PORT}")
    if not _is_utf8(address.topic):
        raise ValueError(f"topic = {_shown(address.topic)}; allowed is text")
    return msgspec.structs.replace(address, host=host)


def read_descriptor(kv_events: object, server_host: str) -> tuple[PublisherAddress, ...]:
    """Every rank's publisher, in rank order; empty if `kv_events` is null: nothing can be followed.

    It has one host for all ranks. Where they are on several nodes, this is true of those on that host only:
    `read_publishers` knows more.

    Args:
        kv_events: the value of that key, as a JSON parser gives it.
        server_host: the host at which `/server_info` was reached; stands in for a wildcard host.

    Raises:
        WireError: not a descriptor.
    """
    if kv_events is None:
        return ()
    if not isinstance(kv_events, dict):
        raise WireError(f"{_WHERE} = {_shown(kv_events)}; allowed are an object and null")
    if kv_events.get("publisher") != "zmq":
        raise _refused(kv_events, "publisher", "allowed is 'zmq'")
    dp_size = _integer(kv_events, "dp_size", MAX_DP_SIZE)
    events = _ports(kv_events, "endpoint_port_base", _host(kv_events, server_host), dp_size)
    replay = _optional_ports(kv_events, "replay_endpoint_port_base", events)
    load = _optional_ports(kv_events, "load_endpoint_port_base", events)
    if replay and load and replay.overlaps(load):
        raise _refused(kv_events, "load_endpoint_port_base", f"the replay ports are {replay}")
    topic = _text(kv_events, "topic")
    load_topic = _text(kv_events, "load_topic") if load else None
    block_size = _integer(kv_events, "block_size", _MAX_BLOCK_SIZE)
    curve_public_key = _optional_key(kv_events, "curve_public_key")
    return tuple(
        PublisherAddress(
            rank=rank,
            host=events.host,
            event_port=events.ports[rank],
            replay_port=replay.ports[rank] if replay else None,
            load_port=load.ports[rank] if load else None,
            topic=topic,
            load_topic=load_topic,
            block_size=block_size,
            curve_public_key=curve_public_key,
        )
        for rank in range(dp_size)
    )


def _host(descriptor: Object, server_host: str) -> str:
    given = _text(descriptor, "endpoint_host")
    # The contract has IPv6 addresses in brackets; where there are none, they are added.
    if host_fault(dial_host(given, given)):
        raise _refused(descriptor, "endpoint_host", "allowed are '*', a host's name and an IP address")
    return dial_host(given, server_host)


def _optional_ports(descriptor: Object, key: str, events: PortSpan) -> PortSpan | None:
    if descriptor.get(key) is None:
        return None
    span = _ports(descriptor, key, events.host, len(events.ports))
    if span.overlaps(events):
        raise _refused(descriptor, key, f"the event ports are {events}")
    return span


def _ports(descriptor: Object, key: str, host: str, dp_size: int) -> PortSpan:
    base = _integer(descriptor, key, MAX_PORT - dp_size + 1)
    return PortSpan(host, range(base, base + dp_size))


def _optional_key(descriptor: Object, key: str) -> str | None:
    if descriptor.get(key) is None:
        return None
    text = _text(descriptor, key)
    if not is_key(text.encode()):
        raise _refused(descriptor, key, "allowed are 40 characters of z85")
    return text


def _integer(descriptor: Object, key: str, maximum: int) -> int:
    value = descriptor.get(key)
    if type(value) is not int or not 1 <= value <= maximum:  # a bool is an int to isinstance
        raise _refused(descriptor, key, f"allowed are the integers 1..{maximum}")
    return value


def _text(descriptor: Object, key: str) -> str:
    value = descriptor.get(key)
    if not isinstance(value, str) or not _is_utf8(value):
        raise _refused(descriptor, key, "allowed is text")
    return value


def _is_utf8(text: str) -> bool:
    """Whether it can be sent: JSON can write lone surrogates, which UTF-8 can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(descriptor: Object, key: str, why: str) -> WireError:
    shown = f"= {_shown(descriptor[key])}" if key in descriptor else "is missing"
    return WireError(f"{_WHERE}.{key} {shown}; {why}")


def _shown(value: object) -> str:
    """`value` for an error's message: short, whatever it is."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]!r}…"
    if isinstance(value, int) and value.bit_length() > 64:  # Python refuses to write very long integers
        return f"an integer of {value.bit_length()} bits"
    return repr(value) if isinstance(value, int | float | None) else f"a {type(value).__name__}"
