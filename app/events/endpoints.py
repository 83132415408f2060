"""The `kv_events_config` string: what ranks bind and what is advertised, from one port plan.

    parse() ── KvEventsConfig ── _plan() ──┬── rank_endpoints(): what rank r binds or connects
                                           └── KvEvents.descriptor: what `/server_info` says

                 events (configured)   replay (configured)   load (derived: the next free range)
    tcp ports    base … base+dp-1      base … base+dp-1      base … base+dp-1          rank r has base + r

The keys and the rules by which a descriptor is null are SGLang's. A misconfigured endpoint never stops a
server: it gives a null descriptor and a reason to be logged. A misspelt key or overlapping ranges do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from app.config import AppConfig
from app.errors import ConfigError
from app.events.config import KvEventsConfig
from app.events.ports import PortSpan, UnusableEndpointError, is_loopback, port_span
from app.validation import validate

_WHERE = "kv_events_config"

Descriptor = dict[str, Any]


@dataclass(frozen=True, slots=True)
class KvEvents:
    """What became of the `kv_events_config` string.

    Attributes:
        config: what the ranks publish with; None: they publish nothing.
        descriptor: the value of `kv_events` in `/server_info`.
        reason: why there is no descriptor, or why no client can follow the one there is; empty: all is well.
        misconfigured: publishing was asked for; log `reason` as an error, once.
    """

    config: KvEventsConfig | None
    descriptor: Descriptor | None
    reason: str = ""
    misconfigured: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One ZMQ address of one rank; `port` is None unless it is tcp."""

    address: str
    binds: bool
    port: int | None

    @property
    def leaves_the_machine(self) -> bool:
        """Whether what is sent here can be read on other machines."""
        host, _, _ = self.address.removeprefix("tcp://").rpartition(":")
        return self.port is not None and not is_loopback(host)


@dataclass(frozen=True, slots=True)
class RankEndpoints:
    """Everything that one rank opens. `host` is the events' host as configured, empty unless tcp."""

    host: str
    events: Endpoint
    replay: Endpoint | None
    load: Endpoint | None

    @property
    def dialable(self) -> bool:
        """Whether a client that knows only host and port can subscribe."""
        return self.events.port is not None and self.events.binds

    @property
    def exposed(self) -> list[str]:
        """The addresses that other machines can reach."""
        opened = (self.events, self.replay, self.load)
        return [each.address for each in opened if each is not None and each.leaves_the_machine]


def parse_kv_events(config: AppConfig) -> KvEvents:
    """What the deployment's `kv_events_config` asks for; done once, by `app.build`, and handed on.

    Raises:
        ConfigError: as `parse`.
    """
    return parse(config.kv_events_config, config.engine.cache.block_size, config.dp_size)


def parse(raw: str | None, block_size: int | None, dp_size: int) -> KvEvents:
    """What the raw JSON string asks for, for ranks 0..`dp_size`-1 with blocks of `block_size` tokens.

    Raises:
        ConfigError: well-formed JSON with an unknown key or a wrongly typed value, or port ranges of
            events and replay that overlap.
    """
    if raw is None:
        return KvEvents(None, None, f"{_WHERE} is not set")
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return _misconfigured(f"{_WHERE} = {raw!r} is not JSON: {error}")
    if not isinstance(values, dict):
        return _misconfigured(f"{_WHERE} = {raw!r} is not a JSON object")
    config = validate(KvEventsConfig, values, where=_WHERE)
    if config.publisher == "null":
        return KvEvents(None, None, f'{_WHERE}.publisher is "null"')
    if not block_size or block_size < 1:
        return _misconfigured(f"block size = {block_size}; it must be at least 1")
    try:
        return _describe(config, block_size, dp_size)
    except UnusableEndpointError as error:
        return _misconfigured(str(error))


def rank_endpoints(config: KvEventsConfig, rank: int, dp_size: int) -> RankEndpoints:
    """What rank `rank` of `dp_size` opens for events, replay and load reports.

    Raises:
        ConfigError: tcp without a usable port or host, ports that overlap or run beyond 65535, or ipc
            for a rank other than 0.
    """
    assert 0 <= rank < dp_size, (rank, dp_size)
    plan = _plan(config, dp_size)
    return RankEndpoints(
        host=plan.events.host if plan.events else "",
        events=_rank_endpoint(config.endpoint, plan.events, rank, bind=config.bind),
        replay=(
            _rank_endpoint(config.replay_endpoint, plan.replay, rank, bind="bind")
            if config.replay_endpoint is not None
            else None
        ),
        load=_rank_endpoint(config.endpoint, plan.load, rank, bind=config.bind) if plan.load else None,
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """The port ranges of all ranks; None where there are none, or the transport isn't tcp."""

    events: PortSpan | None
    replay: PortSpan | None
    load: PortSpan | None


def _plan(config: KvEventsConfig, dp_size: int) -> _Plan:
    events = port_span(f"{_WHERE}.endpoint", config.endpoint, dp_size)
    replay = None
    if config.replay_endpoint is not None:
        replay = port_span(f"{_WHERE}.replay_endpoint", config.replay_endpoint, dp_size)
    if events and replay and events.overlaps(replay):
        raise ConfigError(
            f"{_WHERE}: the replay ports {replay} overlap the event ports {events}; "
            f"with {dp_size} ranks they must be at least {dp_size} apart"
        )
    load = _load_span(events, replay, dp_size) if events and config.load_reports else None
    return _Plan(events, replay, load)


def _load_span(events: PortSpan, replay: PortSpan | None, dp_size: int) -> PortSpan:
    """The first free range: after the events, after the replay, before the events, before the replay."""
    taken = [span for span in (events, replay) if span]
    starts = [span.ports.stop for span in taken] + [span.ports.start - dp_size for span in taken]
    for load in (PortSpan(events.host, range(start, start + dp_size)) for start in starts):
        if load.is_valid and not any(load.overlaps(other) for other in taken):
            return load
    raise UnusableEndpointError(f"{_WHERE}: no {dp_size} free ports for load reports beside {events}")


def _describe(config: KvEventsConfig, block_size: int, dp_size: int) -> KvEvents:
    plan = _plan(config, dp_size)
    # The last rank of an ipc endpoint is where that rule would break.
    rank_endpoints(config, dp_size - 1, dp_size)
    if plan.events is None:
        reason = f"{_WHERE}.endpoint = {config.endpoint!r}: only tcp can be advertised"
        return KvEvents(config, None, reason, misconfigured=True)
    descriptor: Descriptor = {
        "publisher": config.publisher,
        "endpoint_host": plan.events.host,
        "endpoint_port_base": plan.events.ports.start,
        "topic": config.topic,
        "block_size": block_size,
        "dp_size": dp_size,
    }
    if plan.replay:
        descriptor["replay_endpoint_port_base"] = plan.replay.ports.start
    if plan.load:
        descriptor["load_endpoint_port_base"] = plan.load.ports.start
        descriptor["load_topic"] = config.load_topic
    if rank_endpoints(config, 0, dp_size).dialable:
        return KvEvents(config, descriptor)
    reason = (
        f"{_WHERE}.endpoint = {config.endpoint!r}: ranks connect to it instead of binding it, so a client "
        f'that dials it receives nothing; if it is an address of theirs, set "bind": "bind"'
    )
    return KvEvents(config, descriptor, reason, misconfigured=True)


def _rank_endpoint(endpoint: str, span: PortSpan | None, rank: int, *, bind: str) -> Endpoint:
    if span is None:
        return Endpoint(_local_address(endpoint, rank), binds=bind != "connect", port=None)
    local = span.is_wildcard or span.is_loopback
    port = span.ports[rank]
    return Endpoint(
        f"tcp://{span.host}:{port}", binds=bind == "bind" or (bind == "auto" and local), port=port
    )


def _local_address(endpoint: str, rank: int) -> str:
    if endpoint.startswith("inproc://"):
        return f"{endpoint}_dp{rank}"
    if rank > 0:
        raise UnusableEndpointError(
            f"{_WHERE}: {endpoint!r} has no place for rank {rank}; ipc is for one rank"
        )
    return endpoint


def _misconfigured(reason: str) -> KvEvents:
    return KvEvents(None, None, reason, misconfigured=True)
