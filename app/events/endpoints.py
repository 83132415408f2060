"""The `kv_events_config`: what ranks bind and what is advertised, from one port plan.

    parse() ── KvEventsConfig ── _plan() ──┬── rank_endpoints(): what rank r binds or connects
                                           └── KvEvents.descriptor: what `/server_info` says

                 events (configured)   replay (configured)   load (configured, or one more distance on)
    tcp ports    base … base+dp-1      base … base+dp-1      base … base+dp-1          rank r has base + r
                 └── distance = room ─┘└─ the same distance ─┘

The keys and the rules by which a descriptor is null are SGLang's. A misconfigured endpoint never stops a
server: it gives a null descriptor and a reason to be logged. A misspelt key or overlapping ranges do.
No base depends on how many ranks there are: ranks of another deployed size, old or new, are no one's ports.
A rank's number can be beyond dp_size while others leave. It has base + r where that is no other rank's port,
else ports that the system chooses.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

from app.config import AppConfig
from app.errors import ConfigError
from app.events.config import WHERE, KvEventsConfig, read_config
from app.events.ports import (
    MAX_PORT,
    PortSpan,
    UnusableEndpointError,
    is_interface,
    is_loopback,
    is_name,
    is_reached_at,
    port_span,
)
from app.settings.base import MAX_DP_SIZE

Descriptor = dict[str, Any]

_APART = MAX_DP_SIZE
"""Ports between two ranges whose distance no setting shows: there are never more ranks."""


@dataclass(frozen=True, slots=True)
class KvEvents:
    """What became of the `kv_events_config`.

    Attributes:
        config: what the ranks publish with; None: they publish nothing.
        descriptor: the value of `kv_events` in `/server_info`.
        reason: why there is no descriptor, or why no client can follow the one there is; empty: all is well.
        misconfigured: publishing was asked for; `reason` is a fault.
        warnings: what was ignored or left out.
        host_is_resolved_by_ranks: the descriptor's host means nothing on other machines; each rank knows its
            address.
    """

    config: KvEventsConfig | None
    descriptor: Descriptor | None
    reason: str = ""
    misconfigured: bool = False
    warnings: tuple[str, ...] = ()
    host_is_resolved_by_ranks: bool = False

    def log(self, logger: logging.Logger) -> None:
        """Log what an operator must know; one process of a deployment does it, at its start."""
        if self.misconfigured:
            logger.warning("KV events are misconfigured, so no router can follow them: %s", self.reason)
        for warning in self.warnings:
            logger.warning("%s", warning)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One ZMQ address of one rank; `port` is None unless it is tcp, 0 until the system has chosen it."""

    address: str
    binds: bool
    port: int | None

    @property
    def host(self) -> str:
        """As configured, IPv6 in brackets; empty unless tcp."""
        return "" if self.port is None else self.address.removeprefix("tcp://").rpartition(":")[0]

    @property
    def leaves_the_machine(self) -> bool:
        """Whether what is sent here can be read on other machines."""
        return self.port is not None and not is_loopback(self.host)

    def bound_at(self, actual: str) -> Endpoint:
        """This endpoint once ZMQ has bound it at `actual`: the port chosen, and a name's address."""
        if self.port is None:
            return self
        host, _, port = actual.removeprefix("tcp://").rpartition(":")
        host = host if is_name(self.host) else self.host
        return Endpoint(f"tcp://{host}:{port}", self.binds, int(port))


@dataclass(frozen=True, slots=True)
class RankEndpoints:
    """Everything that one rank opens."""

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
    return parse(config.kv_events_config, config.engine.cache.block_size, config.largest_dp_size)


def parse(raw: str | Mapping[str, Any] | None, block_size: int | None, dp_size: int) -> KvEvents:
    """What `raw`, a JSON string or a mapping, asks for; ranks 0..`dp_size`-1, blocks of `block_size` tokens.

    Raises:
        ConfigError: a misspelt key, a value that is not allowed, or port ranges that overlap.
    """
    if raw is None:
        return KvEvents(None, None, f"{WHERE} is not set")
    try:
        values = json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError) as error:
        return _misconfigured(f"{WHERE} = {raw!r} is not JSON: {error}")
    if not isinstance(values, Mapping):
        return _misconfigured(f"{WHERE} = {raw!r} is not a JSON object")
    config, warnings = read_config(values)
    described = _describe(config, block_size, dp_size)
    return replace(described, warnings=(*warnings, *described.warnings))


def rank_endpoints(config: KvEventsConfig, rank: int, dp_size: int, *, planned: bool = True) -> RankEndpoints:
    """What rank `rank` of `dp_size` opens for events, replay and load reports.

    Args:
        config: where.
        rank: its number, perhaps beyond `dp_size`: ranks that leave keep theirs until they are gone.
        dp_size: the largest number of ranks that the plan must have ports for.
        planned: False has the system choose each port that the rank binds; so does a number beyond
            `dp_size` for which the plan has no room.

    Raises:
        ConfigError: tcp without a usable port or host, ports that overlap or run beyond 65535, or ipc for
            several ranks.
    """
    assert rank >= 0, rank
    plan = _plan(config, dp_size)
    if not planned or not plan.has_room(rank):
        plan = plan.chosen_by_the_system()
    replay = load = None
    if config.replay_endpoint is not None:
        replay = _rank_endpoint(config.replay_endpoint, plan.replay, rank, dp_size, binds=True)
    if config.load_publish_endpoint is not None:
        load = _rank_endpoint(config.load_publish_endpoint, plan.load, rank, dp_size, binds=True)
    elif plan.load is not None:
        load = _rank_endpoint(config.endpoint, plan.load, rank, dp_size, binds=True)
    events = _rank_endpoint(config.endpoint, plan.events, rank, dp_size, binds=plan.events_bind)
    return RankEndpoints(events, replay, load)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The port ranges of all ranks; None where there are none, or the transport isn't tcp."""

    events: PortSpan | None
    events_bind: bool
    replay: PortSpan | None
    load: PortSpan | None
    no_load: str = ""
    """Why there are no load reports, though they are wanted."""

    @property
    def spans(self) -> dict[str, PortSpan]:
        """The ranges that there are."""
        spans = {"event": self.events, "replay": self.replay, "load": self.load}
        return {name: span for name, span in spans.items() if span is not None}

    def has_room(self, rank: int) -> bool:
        """Whether every port of `rank` exists, and is no other rank's, whatever numbers there are."""
        bases = sorted(span.ports.start for span in self.spans.values() if not span.is_chosen)
        nearest = min((second - first for first, second in pairwise(bases)), default=MAX_PORT)
        return rank < nearest and all(base + rank <= MAX_PORT for base in bases)

    def chosen_by_the_system(self) -> _Plan:
        """The same with port 0 wherever ranks bind; an address that they connect to stays."""
        events = self.events.chosen() if self.events and self.events_bind else self.events
        replay = self.replay and self.replay.chosen()
        return replace(self, events=events, replay=replay, load=self.load and self.load.chosen())


def _plan(config: KvEventsConfig, dp_size: int) -> _Plan:
    events = port_span(f"{WHERE}.endpoint", config.endpoint, dp_size)
    replay = _optional_span(f"{WHERE}.replay_endpoint", config.replay_endpoint, dp_size)
    load = _optional_span(f"{WHERE}.load_publish_endpoint", config.load_publish_endpoint, dp_size)
    plan = _Plan(events, _events_bind(config, events), replay, load)
    for (first, one), (second, other) in combinations(plan.spans.items(), 2):
        if one.overlaps(other):
            raise ConfigError(
                f"{WHERE}: the {second} ports {other} overlap the {first} ports {one}; "
                f"with {dp_size} ranks they must be at least {dp_size} apart"
            )
    if not config.load_reports or config.load_publish_endpoint is not None or events is None:
        return plan
    if not plan.events_bind:
        return replace(plan, no_load=f"ranks connect to {config.endpoint}")
    return replace(plan, load=_derived_load(events, replay))


def _optional_span(key: str, endpoint: str | None, dp_size: int) -> PortSpan | None:
    return None if endpoint is None else port_span(key, endpoint, dp_size)


def _events_bind(config: KvEventsConfig, events: PortSpan | None) -> bool:
    if events is None:
        return config.bind != "connect"
    if config.bind == "connect" and (events.is_wildcard or is_interface(events.host)):
        raise UnusableEndpointError(f"{WHERE}.endpoint = {config.endpoint!r}: can be bound, not connected to")
    binds = config.bind == "bind" or (config.bind == "auto" and events.is_local)
    if events.is_chosen and not binds:
        raise UnusableEndpointError(f"{WHERE}.endpoint = {config.endpoint!r}: no port 0 can be connected to")
    return binds


def _derived_load(events: PortSpan, replay: PortSpan | None) -> PortSpan:
    """As many ports, as far behind events and replay as those two are apart; without a replay, `_APART`.

    Where that runs out of ports, `_APART` behind one of them; else the system chooses. The first port
    depends on the bases alone: with another number of ranks it is the same.
    """
    bases = [span.ports.start for span in (events, replay) if span is not None and not span.is_chosen]
    if events.is_chosen:
        return events
    distance = max(bases) - min(bases) or _APART
    room = min(distance, _APART)
    for start in (max(bases) + distance, *(base + _APART for base in bases)):
        if start + room - 1 <= MAX_PORT and all(abs(start - base) >= room for base in bases):
            return PortSpan(events.host, range(start, start + len(events.ports)))
    return events.chosen()


def _describe(config: KvEventsConfig, block_size: int | None, dp_size: int) -> KvEvents:
    if config.enable_kv_cache_events is False:
        return KvEvents(None, None, f"{WHERE}.enable_kv_cache_events is false")
    if config.publisher == "null":
        return KvEvents(None, None, f'{WHERE}.publisher is "null"')
    if not block_size or block_size < 1:
        return _misconfigured(f"block size = {block_size}; it must be at least 1")
    try:
        plan = _plan(config, dp_size)
        # The last rank of an ipc endpoint is where that rule would break.
        rank_endpoints(config, dp_size - 1, dp_size)
    except UnusableEndpointError as error:
        return _misconfigured(str(error))
    warnings = _warnings(plan, dp_size)
    given = f"{WHERE}.endpoint = {config.endpoint!r}"
    if plan.events is None:
        reason = f"{given}: only tcp can be advertised"
        return KvEvents(config, None, reason, misconfigured=True, warnings=warnings)
    if plan.events.is_chosen:
        reason = f"{given}: the system chooses the ports, so kv_events is null; `publishers` has them"
        return KvEvents(config, None, reason, warnings=(*warnings, reason))
    descriptor = _descriptor(config, plan.events, plan, block_size, dp_size)
    if plan.events_bind:
        by_ranks = is_interface(plan.events.host)
        return KvEvents(config, descriptor, warnings=warnings, host_is_resolved_by_ranks=by_ranks)
    reason = (
        f"{given}: ranks connect to it instead of binding it, so a client "
        f'that dials it receives nothing; if it is an address of theirs, set "bind": "bind"'
    )
    return KvEvents(config, descriptor, reason, misconfigured=True, warnings=warnings)


def _descriptor(
    config: KvEventsConfig, events: PortSpan, plan: _Plan, block_size: int, dp_size: int
) -> Descriptor:
    descriptor: Descriptor = {
        "publisher": config.publisher,
        "endpoint_host": events.host,
        "endpoint_port_base": events.ports.start,
        "topic": config.topic,
        "block_size": block_size,
        "dp_size": dp_size,
    }
    if plan.replay and _is_advertised(plan.replay, plan):
        descriptor["replay_endpoint_port_base"] = plan.replay.ports.start
    if plan.load and _is_advertised(plan.load, plan):
        descriptor["load_endpoint_port_base"] = plan.load.ports.start
        descriptor["load_topic"] = config.load_topic
    return descriptor


def _is_advertised(span: PortSpan, plan: _Plan) -> bool:
    """Whether one who dials the events' host at base + rank finds `span` there."""
    assert plan.events is not None
    is_there = is_reached_at(span.host, plan.events.host) and (plan.events_bind or not span.is_wildcard)
    return is_there and not span.is_chosen


def _warnings(plan: _Plan, dp_size: int) -> tuple[str, ...]:
    """What is left out of the descriptor, and ranges without room behind them."""
    warnings = [f"{WHERE}: no load reports are published: {plan.no_load}"] if plan.no_load else []
    events = plan.events
    if events and not events.is_chosen:
        warnings += [
            f"{WHERE}: the {name} ports ({span.host}, {span}) are left out of kv_events, which "
            f"has one host, {events.host}, and ports in a row"
            for name, span in plan.spans.items()
            if span is not events and not _is_advertised(span, plan)
        ]
    if not plan.has_room(2 * dp_size - 1):
        warnings.append(
            f"{WHERE}: put the ranges of ports at least {2 * dp_size} apart, and below {MAX_PORT}: while "
            f"ranks are replaced, new ones have the next numbers, and here the system chooses their ports, "
            f"which only `publishers` has"
        )
    return tuple(warnings)


def _rank_endpoint(endpoint: str, span: PortSpan | None, rank: int, dp_size: int, *, binds: bool) -> Endpoint:
    if span is None:
        return Endpoint(_local_address(endpoint, rank, dp_size), binds=binds, port=None)
    port = span.port(rank)
    return Endpoint(f"tcp://{span.host}:{port}", binds=binds, port=port)


def _local_address(endpoint: str, rank: int, dp_size: int) -> str:
    if rank == 0:
        return endpoint
    if endpoint.startswith("inproc://") or dp_size == 1:  # beside the one rank while it leaves
        return f"{endpoint}_dp{rank}"
    raise UnusableEndpointError(f"{WHERE}: {endpoint!r} has no place for rank {rank}; ipc is for one rank")


def _misconfigured(reason: str) -> KvEvents:
    return KvEvents(None, None, reason, misconfigured=True)
