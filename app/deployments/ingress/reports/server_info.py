"""What describes the deployment: SGLang's `/server_info` and `/model_info`, kvbeacon's list of publishers,
and OpenAI's `/v1/models`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from app import __version__
from app.config import AppConfig
from app.deployments.messages import Json, RankInfo
from app.events.endpoints import Descriptor, KvEvents
from app.models.store import served_name
from app.redaction import redacted


def server_info(config: AppConfig, events: KvEvents, max_model_len: int, ranks: Sequence[RankInfo]) -> Json:
    """Everything about the deployment: SGLang's names at top level, every setting of ours under `config`,
    and each rank as it is.

    Routers that know SGLang parse the whole answer, and refuse it where one of its names has another type
    than SGLang's. `kv_events` is the descriptor that they look for, null when there is nothing to follow, or
    while no rank says its key or address where only ranks know it. `publishers` has an entry for each replica
    that answers, and for each rank that should be there and doesn't answer (`"state": "unreachable"`).
    """
    missing = sorted(set(range(config.expected_dp_size)) - {info.rank for info in ranks})
    entries = sorted(
        [*((info.rank, info) for info in ranks), *((rank, None) for rank in missing)],
        key=lambda entry: entry[0],
    )
    dp_size = present_dp_size(config, ranks)
    return {
        **model_info(config, max_model_len),
        "tp_size": config.tp_size,
        "dp_size": dp_size,
        "max_running_requests": config.engine.scheduler.max_running_requests,
        "page_size": config.engine.cache.block_size,
        "kv_events": _descriptor(events, config, ranks),
        "kv_events_config": config.kv_events_config,
        "publishers": [_publisher(rank, info) for rank, info in entries],
        "internal_states": [_internal_state(rank, info) for rank, info in entries],
        "version": __version__,
        "config": _settings(config),
    }


def present_dp_size(config: AppConfig, ranks: Sequence[RankInfo]) -> int:
    """One more than the highest number of a rank that is there, or that should be."""
    return max(config.expected_dp_size, 1 + max((info.rank for info in ranks), default=-1))


def model_info(config: AppConfig, max_model_len: int) -> Json:
    """What is served."""
    return {
        "model_path": config.model.path,
        "served_model_name": served_name(config.model),
        "is_generation": True,
        "max_model_len": max_model_len,
    }


def model_card(config: AppConfig, max_model_len: int, name: str) -> Json:
    """The model in OpenAI's shape, by one of its names.

    Whose it is tells smg which server's API to use, which must be SGLang's: any other server that has
    `/version` it would take for vLLM.
    """
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "sglang",
        "max_model_len": max_model_len,
    }


def _settings(config: AppConfig) -> Json:
    """Every setting of ours, but for what may be secret in vLLM's arguments."""
    settings = config.model_dump(mode="json")
    settings["engine"]["vllm"] = redacted(settings["engine"]["vllm"])
    return settings


def _descriptor(events: KvEvents, config: AppConfig, ranks: Sequence[RankInfo]) -> Descriptor | None:
    """With what only ranks know: how many there are, the address of their interface, and their public key.

    Interface and key files may be on other nodes than this ingress. Ranks beyond the usual number count if
    they are where the descriptor says: one whose ports the system chose is in `publishers` alone.
    """
    if events.descriptor is None or events.config is None:
        return None
    descriptor = dict(events.descriptor)
    planned = [info for info in ranks if _is_at_base(info, descriptor["endpoint_port_base"])]
    descriptor["dp_size"] = present_dp_size(config, planned)
    if not descriptor["dp_size"]:
        return None
    addresses = [info.publisher.address for info in ranks if info.publisher is not None]
    if events.host_is_resolved_by_ranks:
        hosts = {address.host for address in addresses}
        if len(hosts) != 1:  # no rank answers, or they are on several nodes, and one host can't describe them
            return None
        descriptor["endpoint_host"] = hosts.pop()
    if events.config.curve is not None:
        key = next((each.curve_public_key for each in addresses if each.curve_public_key), None)
        if key is None:
            return None
        descriptor["curve_public_key"] = key
    return descriptor


def _is_at_base(info: RankInfo, base: int) -> bool:
    return info.publisher is not None and info.publisher.address.event_port == base + info.rank


def _publisher(rank: int, info: RankInfo | None) -> Json:
    if info is None:
        return {"rank": rank, "state": "unreachable"}
    if info.publisher is None:
        return {"rank": rank, "state": "disabled"}
    cache = "whole" if info.partial_cache is None else "partial"
    return {**info.publisher.as_json(), "cache": cache, "cache_reason": info.partial_cache}


def _internal_state(rank: int, info: RankInfo | None) -> Json:
    if info is None:
        return {"dp_rank": rank, "state": "unreachable"}
    return {
        "dp_rank": rank,
        "state": "ready" if info.unavailable is None else "unavailable",
        "reason": info.unavailable,
        "replica_id": info.replica_id,
        "ray_rank": info.ray_rank,
        "rank_conflicts": info.num_rank_conflicts,
        "node_ip": info.node_ip,
        "pid": info.pid,
        "device": info.device,
        "dtype": info.dtype,
        "kernels": info.kernels,
        "max_model_len": info.max_model_len,
        "num_blocks": info.num_blocks,
        "num_cached_blocks": info.num_cached_blocks,
        "load": msgspec.structs.asdict(info.load),
        "foreign_events": info.foreign_events,
    }
