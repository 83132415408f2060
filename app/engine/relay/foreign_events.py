"""What other engines publish, read so tolerantly that one strange event costs only itself.

A payload is `[ts, events, rank]` as in `app.events.batch_codec`; an event is a map or an array. These are the
fields of SGLang 0.5 and vLLM 0.33 that matter here. Others are ignored, and so is the rank: several
independent workers may all say 0. Hashes stay what they are: signed or unsigned 64-bit integers, or bytes.

    whole batch into structs ──fails──▶ event by event ──fails──▶ a fault, with its reason
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from app.errors import WireError
from app.events.schema import (
    DECODE_FAULTS,
    MAX_EVENTS_PER_BATCH,
    MAX_HASHES_PER_EVENT,
    MAX_QUOTED,
    decode_capped,
)

ForeignHash = int | bytes
_Hashes = Annotated[list[ForeignHash], msgspec.Meta(max_length=MAX_HASHES_PER_EVENT)]

FaultKind = Literal["unknown_type", "unreadable", "bigram", "block_size", "token_count", "token_id", "groups"]


class Fault(msgspec.Struct, frozen=True):
    """Why an event could not be used."""

    kind: FaultKind
    text: str


class ForeignStored(msgspec.Struct, tag="BlockStored", gc=False, kw_only=True):
    """Blocks that are in the cache now, in chain order.

    `extra_keys` has for each block None or what vLLM's hash covers beside the tokens, untagged, in order:
    LoRA name, `[multimodal identifier, offset]`…, cache salt (first block only), prompt embeddings' digest.
    """

    block_hashes: _Hashes
    parent_block_hash: ForeignHash | None = None
    token_ids: list[int]
    block_size: int
    lora_id: Any = None
    medium: str | None = None
    lora_name: str | None = None
    cache_salt: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    locality: str | None = None


class ForeignRemoved(msgspec.Struct, tag="BlockRemoved", gc=False, kw_only=True):
    """Blocks of which one copy each has left the cache."""

    block_hashes: _Hashes
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None


class ForeignCleared(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    """The cache is empty now."""


ForeignEvent = ForeignStored | ForeignRemoved | ForeignCleared


class ForeignBatch(msgspec.Struct, gc=False):
    """The events of a batch that could be read, in order, and the faults of those that could not."""

    events: Sequence[ForeignEvent]
    faults: Sequence[Fault] = ()


# In the array format vLLM's LoRA name and extra keys follow `medium`, in others anything.


class _StoredArray(msgspec.Struct, array_like=True, tag="BlockStored", gc=False):
    block_hashes: _Hashes
    parent_block_hash: ForeignHash | None
    token_ids: list[int]
    block_size: int
    lora_id: Any = None
    medium: str | None = None
    seventh: Any = None
    eighth: Any = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class _RemovedArray(msgspec.Struct, array_like=True, tag="BlockRemoved", gc=False):
    block_hashes: _Hashes
    medium: str | None = None
    group_idx: int | None = None


class _ClearedArray(msgspec.Struct, array_like=True, tag="AllBlocksCleared", gc=False):
    pass


class _AnyBatch(msgspec.Struct, array_like=True, gc=False):
    ts: Any
    events: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_EVENTS_PER_BATCH)]


class _MapBatch(msgspec.Struct, array_like=True, gc=False):
    ts: Any
    events: Annotated[list[ForeignEvent], msgspec.Meta(max_length=MAX_EVENTS_PER_BATCH)]


_AnyArray = _StoredArray | _RemovedArray | _ClearedArray
_as_maps = msgspec.msgpack.Decoder(_MapBatch)
_one_by_one = msgspec.msgpack.Decoder(_AnyBatch)
_map_event: msgspec.msgpack.Decoder[ForeignEvent] = msgspec.msgpack.Decoder(ForeignEvent)
_array_event: msgspec.msgpack.Decoder[_AnyArray] = msgspec.msgpack.Decoder(_AnyArray)
_TYPES = ("BlockStored", "BlockRemoved", "AllBlocksCleared")


def decode_foreign(payload: bytes) -> ForeignBatch:
    """The batch in `payload`, in either format.

    Raises:
        WireError: it is no batch at all, or beyond a cap.
    """
    try:
        return ForeignBatch(decode_capped(_as_maps.decode, payload, "event batch").events)
    except WireError:
        raw_events = decode_capped(_one_by_one.decode, payload, "event batch").events
    events: list[ForeignEvent] = []
    faults: list[Fault] = []
    for raw in raw_events:
        read = _read_event(bytes(raw))
        if isinstance(read, Fault):
            faults.append(read)
        else:
            events.append(read)
    return ForeignBatch(events, faults)


def _read_event(raw: bytes) -> ForeignEvent | Fault:
    is_array = bool(raw) and (0x90 <= raw[0] <= 0x9F or raw[0] in (0xDC, 0xDD))
    try:
        return _from_array(_array_event.decode(raw)) if is_array else _map_event.decode(raw)
    except DECODE_FAULTS as error:
        return _fault(raw, error)


def _from_array(wire: _AnyArray) -> ForeignEvent:
    match wire:
        case _StoredArray():
            return ForeignStored(
                block_hashes=wire.block_hashes,
                parent_block_hash=wire.parent_block_hash,
                token_ids=wire.token_ids,
                block_size=wire.block_size,
                lora_id=wire.lora_id,
                medium=wire.medium,
                # A name, or a salt: in either case these blocks aren't a plain prompt's.
                lora_name=wire.seventh if isinstance(wire.seventh, str) else None,
                extra_keys=msgspec.convert(wire.eighth, list[list[Any] | None] | None),
                group_idx=wire.group_idx,
                kv_cache_spec_kind=wire.kv_cache_spec_kind,
            )
        case _RemovedArray():
            return ForeignRemoved(
                block_hashes=wire.block_hashes, medium=wire.medium, group_idx=wire.group_idx
            )
    return ForeignCleared()


def _fault(raw: bytes, error: Exception) -> Fault:
    """Names what is wrong with an event that doesn't decode."""
    try:
        event = msgspec.msgpack.decode(raw)
    except DECODE_FAULTS:
        return Fault("unreadable", str(error)[:MAX_QUOTED])
    kind, tokens = None, None
    if isinstance(event, dict):
        kind, tokens = event.get("type"), event.get("token_ids")
    elif isinstance(event, list) and event:
        kind, tokens = event[0], event[3] if len(event) > 3 else None
    if kind not in _TYPES:
        return Fault(
            "unknown_type", f"event of type {str(kind)[:MAX_QUOTED]!r}; known are {', '.join(_TYPES)}"
        )
    if isinstance(tokens, list) and tokens and all(isinstance(each, list) for each in tokens):
        return Fault("bigram", f"{kind} of {len(tokens)} token pairs; single tokens are needed")
    return Fault("unreadable", f"{kind}: {str(error)[:MAX_QUOTED]}")
