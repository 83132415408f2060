"""The payload of a batch of events, written in either format and read in both.

The payload is the array `[ts, events, dp_rank]`. An event is a map tagged by `type` (SGLang since 0.5.20,
vLLM now) or an array tagged by its first element (SGLang up to 0.5.13, older vLLM); one batch holds one kind.
Reading normalises block hashes to signed int64 and raises nothing but `WireError`, whatever the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from app.errors import WireError
from app.events.schema import (
    DECODE_FAULTS,
    MAX_EVENTS_PER_BATCH,
    MAX_HASHES_PER_EVENT,
    MAX_QUOTED,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    CacheEvent,
    Count,
    EventBatch,
    Format,
    check_size,
)

_HASH_BYTES = 8
_INT64_END = 2**63


def encode_batch(batch: EventBatch, format: Format = "map") -> bytes:
    """The payload of `batch`.

    Raises:
        WireError: the batch breaks a cap that every decoder of it enforces.
    """
    if len(batch.events) > MAX_EVENTS_PER_BATCH:
        raise WireError(f"batch of {len(batch.events)} events; at most {MAX_EVENTS_PER_BATCH} are allowed")
    for event in batch.events:
        _check_hashes(event)
    events = batch.events if format == "map" else [_as_array(event) for event in batch.events]
    payload = msgspec.msgpack.encode((batch.ts, events, batch.dp_rank))
    check_size(payload)
    return payload


def decode_batch(payload: bytes, *, token_ids: bool = True) -> EventBatch:
    """The batch in `payload`, whichever format its events have; unknown keys are ignored.

    Args:
        payload: msgpack.
        token_ids: False leaves `BlockStored.token_ids` empty and saves most of the time that decoding takes.

    Raises:
        WireError: not a batch, or beyond a cap.
    """
    check_size(payload)
    plain, *others = _DECODERS[token_ids]
    try:
        batch = plain.decode(payload)
    except DECODE_FAULTS:
        return _decode_other(others, payload)
    return EventBatch(batch.ts, batch.events, batch.dp_rank)


# Most batches are decoded into `CacheEvent`s at once: maps with signed hashes, as SGLang and kvbeacon write
# them. Others are read into wider types first: hashes may be unsigned or raw bytes (vLLM), and the array
# format ends with `medium` (what follows it differs between SGLang and vLLM, and is ignored).

_WireHash = int | bytes
_WireHashes = Annotated[list[_WireHash], msgspec.Meta(max_length=MAX_HASHES_PER_EVENT)]


class _StoredWithoutTokens(BlockStored, frozen=True, tag="BlockStored", gc=False, kw_only=True):
    # A name that no event has, so what is under the real one is skipped.
    token_ids: list[int] = msgspec.field(default_factory=list, name="")


class _StoredArray(msgspec.Struct, array_like=True, tag="BlockStored", gc=False):
    block_hashes: _WireHashes
    parent_block_hash: _WireHash | None
    token_ids: list[int]
    block_size: Count
    lora_id: int | None = None
    medium: str | None = None


class _StoredArrayWithoutTokens(msgspec.Struct, array_like=True, tag="BlockStored", gc=False):
    block_hashes: _WireHashes
    parent_block_hash: _WireHash | None
    token_ids: msgspec.Raw  # skipped, not read
    block_size: Count
    lora_id: int | None = None
    medium: str | None = None


class _RemovedArray(msgspec.Struct, array_like=True, tag="BlockRemoved", gc=False):
    block_hashes: _WireHashes
    medium: str | None = None


class _ClearedArray(msgspec.Struct, array_like=True, tag="AllBlocksCleared", gc=False):
    pass


class _StoredMapWithoutTokens(msgspec.Struct, tag="BlockStored", gc=False, kw_only=True):
    block_hashes: _WireHashes
    parent_block_hash: _WireHash | None = None
    block_size: Count
    lora_id: int | None = None
    medium: str | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    lora_name: str | None = None


class _StoredMap(_StoredMapWithoutTokens, tag="BlockStored", gc=False, kw_only=True):
    token_ids: list[int]


class _RemovedMap(msgspec.Struct, tag="BlockRemoved", gc=False):
    block_hashes: _WireHashes
    medium: str | None = None


class _ClearedMap(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    pass


def _decoder(event_type: Any) -> msgspec.msgpack.Decoder[Any]:
    events = Annotated[list[event_type], msgspec.Meta(max_length=MAX_EVENTS_PER_BATCH)]
    fields: list[Any] = [("ts", float), ("events", events), ("dp_rank", int | None, None)]
    return msgspec.msgpack.Decoder(msgspec.defstruct("EventBatch", fields, array_like=True))


# With token ids or without → decoders of plain maps, of wide maps, of arrays.
_DECODERS = {
    True: (
        _decoder(CacheEvent),
        _decoder(_StoredMap | _RemovedMap | _ClearedMap),
        _decoder(_StoredArray | _RemovedArray | _ClearedArray),
    ),
    False: (
        _decoder(_StoredWithoutTokens | BlockRemoved | AllBlocksCleared),
        _decoder(_StoredMapWithoutTokens | _RemovedMap | _ClearedMap),
        _decoder(_StoredArrayWithoutTokens | _RemovedArray | _ClearedArray),
    ),
}


def _decode_other(decoders: Sequence[msgspec.msgpack.Decoder[Any]], payload: bytes) -> EventBatch:
    """A batch of wide maps or of arrays."""
    as_maps, as_arrays = decoders
    try:
        wire = as_maps.decode(payload)
    except DECODE_FAULTS as error:
        try:
            wire = as_arrays.decode(payload)
        except DECODE_FAULTS as error_as_arrays:
            faults = [str(fault)[:MAX_QUOTED] for fault in (error, error_as_arrays)]
            message = "invalid event batch: {} (or, with events as arrays: {})".format(*faults)
            raise WireError(message) from None
    return EventBatch(wire.ts, [_event(event) for event in wire.events], wire.dp_rank)


def _event(wire: Any) -> CacheEvent:
    if isinstance(wire, _ClearedMap | _ClearedArray):
        return AllBlocksCleared()
    hashes = _all_signed(wire.block_hashes)
    if isinstance(wire, _RemovedMap | _RemovedArray):
        return BlockRemoved(hashes, wire.medium)
    parent = None if wire.parent_block_hash is None else _signed(wire.parent_block_hash)
    token_ids = wire.token_ids if isinstance(wire, _StoredMap | _StoredArray) else []
    stored = (hashes, parent, token_ids, wire.block_size, wire.lora_id, wire.medium)
    if isinstance(wire, _StoredMapWithoutTokens):
        return BlockStored(*stored, wire.cache_salt, wire.session_id, wire.lora_name)
    return BlockStored(*stored)


def _all_signed(hashes: list[Any]) -> list[int]:
    try:
        if max(hashes, default=0) < _INT64_END:
            return hashes
    except TypeError:  # some are bytes
        return [_signed(block_hash) for block_hash in hashes]
    return [block_hash - 2 * _INT64_END if block_hash >= _INT64_END else block_hash for block_hash in hashes]


def _signed(block_hash: int | bytes) -> int:
    """A hash as signed int64: unsigned ones wrap, of raw bytes the first 8 count."""
    if isinstance(block_hash, int):
        return block_hash - 2 * _INT64_END if block_hash >= _INT64_END else block_hash
    if len(block_hash) < _HASH_BYTES:
        raise WireError(f"block hash of {len(block_hash)} bytes; at least {_HASH_BYTES} are needed")
    return int.from_bytes(block_hash[:_HASH_BYTES], "big", signed=True)


def _as_array(event: CacheEvent) -> tuple[Any, ...]:
    match event:
        case BlockStored():
            return (
                "BlockStored",
                event.block_hashes,
                event.parent_block_hash,
                event.token_ids,
                event.block_size,
                event.lora_id,
                event.medium,
            )
        case BlockRemoved():
            return ("BlockRemoved", event.block_hashes, event.medium)
        case AllBlocksCleared():
            return ("AllBlocksCleared",)


def _check_hashes(event: CacheEvent) -> None:
    count = 0 if isinstance(event, AllBlocksCleared) else len(event.block_hashes)
    if count > MAX_HASHES_PER_EVENT:
        raise WireError(f"event of {count} block hashes; at most {MAX_HASHES_PER_EVENT} are allowed")
