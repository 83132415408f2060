"""Reads `/server_info` of SGLang or kvbeacon for one of its ranks, and `/v1/loads`.

`kv_events` is SGLang's contract (`app.events.descriptor`). kvbeacon has more to say: `publishers`, an entry
per rank, with ports that the system may have chosen, and `internal_states` with each rank's state.
"""

from __future__ import annotations

import re
from typing import Any

from app.engine.remote.worker import MAX_COUNT, Publisher, WorkerDescription, WorkerKind, port_fault
from app.errors import WireError, WorkerError
from app.events.descriptor import read_descriptor
from app.events.ports import dial_host
from app.events.publisher_info import PublisherAddress
from app.events.schema import LoadStat

Json = dict[str, Any]

SALTS_SINCE = (0, 5, 23)
"""The oldest SGLang whose `/generate` is known to have `cache_salt`; what one doesn't know it leaves out."""
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")


def read_server_info(info: Json, server_host: str, dp_rank: int) -> WorkerDescription:
    """Rank `dp_rank` as the answer describes it.

    Raises:
        WorkerError: the descriptor can't be used, or kvbeacon says that the rank is gone.
    """
    kind: WorkerKind = "kvbeacon" if isinstance(info.get("publishers"), list) else "sglang"
    state = _entry(info.get("internal_states"), dp_rank)
    if kind == "kvbeacon":
        _check_state(state, dp_rank)
    dp_size = _dp_size(info)
    publisher, no_publisher = _publisher(info, server_host, dp_rank)
    block_size = _positive(info.get("page_size"))
    names = (info.get(key) for key in ("model_path", "served_model_name"))
    return WorkerDescription(
        kind=kind,
        version=str(info.get("version") or ""),
        dp_size=dp_size,
        model_names=tuple(dict.fromkeys(name for name in names if isinstance(name, str))),
        max_model_len=_positive(info.get("max_model_len")) or _positive(info.get("context_length")),
        block_size=block_size,
        num_blocks=_positive(state.get("num_blocks")) or _blocks(info, state, block_size),
        publisher=publisher,
        no_publisher=no_publisher,
        partial_cache=_partial_cache(info, dp_rank),
        dp_rank=dp_rank if dp_size > 1 else None,
        ignored={} if kind == "kvbeacon" else _ignored(info),
        higher_first=info.get("schedule_low_priority_values_first") is not True,
    )


def read_loads(answer: Json, dp_rank: int) -> LoadStat | None:
    """The load of rank `dp_rank` in SGLang's `/v1/loads`; None if it isn't there.

    Fields: https://docs.sglang.io, `GetLoadsReqOutput`; those that are missing count as 0.
    """
    loads = answer.get("loads")
    entries = [each for each in loads if isinstance(each, dict)] if isinstance(loads, list) else []
    load = next((each for each in entries if each.get("dp_rank", 0) == dp_rank), None)
    if load is None:
        return None
    held = _count(load, "num_used_tokens") or _count(load, "num_tokens")
    counts = {name: _count(load, name) for name in LoadStat.__struct_fields__}
    total = counts["num_total_tokens"] or held
    return LoadStat(**{**counts, "num_tokens": held, "num_total_tokens": total, "dp_rank": dp_rank})


def _ignored(info: Json) -> dict[str, str]:
    """What SGLang would take without a word and not heed."""
    ignored = {}
    if info.get("enable_priority_scheduling") is not True:
        ignored["priority"] = "the worker schedules by no priority; allowed is 0"
    if info.get("enable_deterministic_inference") is not True:
        ignored["seed"] = "the worker heeds none: SGLang does with --enable-deterministic-inference only"
    version = _VERSION.match(str(info.get("version")))
    if version is None or tuple(map(int, version.groups())) < SALTS_SINCE:
        since = ".".join(map(str, SALTS_SINCE))
        ignored["cache_salt"] = f"the worker would not keep caches apart: SGLang {since} or later is needed"
    return ignored


def _check_state(state: Json, dp_rank: int) -> None:
    """kvbeacon says which of its ranks can't serve now."""
    if state.get("state") in ("unreachable", "unavailable"):
        reason = state.get("reason") or state["state"]
        raise WorkerError(f"/server_info: rank {dp_rank} of the worker: {reason}")


def _partial_cache(info: Json, dp_rank: int) -> str | None:
    """kvbeacon's ranks may be workers by URL themselves, and know only a part of what is cached there."""
    entry = _entry(info.get("publishers"), dp_rank)
    if entry.get("cache") != "partial":
        return None
    return f"it knows only a part itself: {entry.get('cache_reason')}"


def _publisher(info: Json, server_host: str, dp_rank: int) -> tuple[Publisher | None, str]:
    own = _entry(info.get("publishers"), dp_rank)
    if own.get("state") == "publishing" and isinstance(own.get("event_port"), int):
        for key in ("event_port", "replay_port", "load_port"):
            if (key == "event_port" or own.get(key)) and (fault := port_fault(own[key])) is not None:
                return None, f"publishers of its /server_info has {key} = {own[key]!r}; {fault}"
        return _own_publisher(own, server_host), ""
    if info.get("kv_events") is None:
        return None, "kv_events of its /server_info is null: it publishes no KV events"
    try:
        addresses = read_descriptor(info["kv_events"], server_host)
    except WireError as error:
        raise WorkerError(f"/server_info: {error}") from None
    if dp_rank >= len(addresses):
        return None, f"kv_events of its /server_info has {len(addresses)} ranks"
    return _from_address(addresses[dp_rank]), ""


def _from_address(address: PublisherAddress) -> Publisher:
    return Publisher(
        address.event_endpoint,
        address.replay_endpoint,
        address.load_endpoint,
        address.topic,
        address.load_topic,
        is_encrypted=address.curve_public_key is not None,
    )


def _own_publisher(entry: Json, server_host: str) -> Publisher:
    """kvbeacon's own entry. Its host is the node's, as it stands there for a wildcard."""
    host = dial_host(str(entry.get("host") or "*"), server_host)

    def endpoint(key: str) -> str | None:
        port = entry.get(key)
        return f"tcp://{host}:{port}" if isinstance(port, int) and port else None

    return Publisher(
        endpoint("event_port") or "",
        endpoint("replay_port"),
        endpoint("load_port"),
        str(entry.get("topic") or ""),
        str(entry.get("load_topic") or "") or None,
        is_encrypted=entry.get("curve_public_key") is not None,
        epoch=str(entry.get("epoch") or "") or None,
    )


def _dp_size(info: Json) -> int:
    kv_events = info.get("kv_events")
    described = kv_events.get("dp_size") if isinstance(kv_events, dict) else None
    return _positive(info.get("dp_size")) or _positive(described) or 1


def _blocks(info: Json, state: Json, block_size: int | None) -> int | None:
    tokens = _positive(state.get("max_total_num_tokens")) or _positive(info.get("max_total_num_tokens"))
    return tokens // block_size if tokens and block_size else None


def _entry(entries: Any, dp_rank: int) -> Json:
    """The entry of a rank; SGLang's have no number, and are in the ranks' order."""
    if not isinstance(entries, list):
        return {}
    numbered = [each for each in entries if isinstance(each, dict)]
    for each in numbered:
        if each.get("rank", each.get("dp_rank")) == dp_rank:
            return each
    without = [each for each in numbered if "rank" not in each and "dp_rank" not in each]
    return without[dp_rank] if dp_rank < len(without) else {}


def _positive(value: Any) -> int | None:
    return value if type(value) is int and 0 < value <= MAX_COUNT else None


def _count(load: Json, key: str) -> int:
    value = load.get(key)
    return int(value) if isinstance(value, int | float) and 0 < value <= MAX_COUNT else 0
