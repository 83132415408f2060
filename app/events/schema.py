"""What travels on the event and load sockets: types, encoders and decoders with caps.

A message is three frames, `topic | seq (8 bytes, big-endian) | msgpack payload`. The events' payload is the
array `[ts, events, dp_rank]`; an event is a map tagged by `type` (SGLang since 0.5.20, vLLM now) or an
array tagged by its first element (SGLang up to 0.5.13, older vLLM). Decoding takes both, normalises block
hashes to signed int64 and raises nothing but `WireError`, whatever the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from app.errors import WireError

MAX_FRAME_BYTES = 32 * 2**20
MAX_EVENTS_PER_BATCH = 65_536
MAX_HASHES_PER_EVENT = 65_536
MAX_ACKNOWLEDGED = 65_536

ACK_TOPIC = b"ack"
SEQ_BYTES = 8
END_OF_REPLAY = b"\xff" * SEQ_BYTES

Format = Literal["map", "array"]
Count = Annotated[int, msgspec.Meta(ge=0)]
Decoded = TypeVar("Decoded")


def _no_lora() -> None:
    """A factory, because `omit_defaults` would leave a plain None out and SGLang always sends this key."""


class BlockStored(msgspec.Struct, frozen=True, omit_defaults=True, tag=True, gc=False):
    """Consecutive blocks that are now in the cache.

    `block_hashes` are wire hashes (signed int64) in chain order, `parent_block_hash` the one before the
    first (None at the root), `token_ids` the tokens of all the blocks: `len(block_hashes) * block_size`.
    """

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = msgspec.field(default_factory=_no_lora)
    medium: str | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    lora_name: str | None = None


class BlockRemoved(msgspec.Struct, frozen=True, omit_defaults=True, tag=True, gc=False):
    """Blocks that have left the cache."""

    block_hashes: list[int]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The cache is empty now: a reset, or a publisher's first message."""


CacheEvent = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, frozen=True):
    """One message of events: what changed in a rank's cache in one step. `ts` is Unix time in seconds."""

    ts: float
    events: list[CacheEvent]
    dp_rank: int | None = None


class LoadStat(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One rank's load, laid out as SGLang 0.5.23 sends it.

    The last two count from the rank's start: prompt tokens computed and microseconds spent on them. Their
    difference quotient is the measured prefill rate.
    """

    num_running_reqs: Count
    num_waiting_reqs: Count
    num_tokens: Count
    max_total_num_tokens: Count
    dp_rank: Count
    num_waiting_uncached_tokens: Count
    num_total_tokens: Count
    max_running_requests: Count
    total_prefill_uncached_tokens: Count
    total_prefill_busy_us: Count


class Acknowledged(msgspec.Struct, frozen=True, array_like=True):
    """Requests that the rank's load reports count from now on, so that no reservation need stand for them."""

    dp_rank: Count
    request_ids: Annotated[list[str], msgspec.Meta(max_length=MAX_ACKNOWLEDGED)]


class CacheSnapshot(msgspec.Struct, frozen=True):
    """All blocks of a rank's cache as they stood right after batch `seq` of the publisher `epoch`."""

    epoch: str
    seq: int
    block_hashes: list[int]


def encode_batch(batch: EventBatch, format: Format = "map") -> bytes:
    """The payload of `batch`.

    Raises:
        WireError: the batch breaks a cap that every decoder of it enforces.
    """
    _check_events(len(batch.events))
    for event in batch.events:
        _check_hashes(event)
    events = batch.events if format == "map" else [_as_array(event) for event in batch.events]
    payload = msgspec.msgpack.encode((batch.ts, events, batch.dp_rank))
    _check_size(payload)
    return payload


def decode_batch(payload: bytes) -> EventBatch:
    """The batch in `payload`, whichever format its events have; unknown keys are ignored.

    Raises:
        WireError: not a batch, or beyond a cap.
    """
    wire = _decode(_batch_decoder.decode, payload, "event batch")
    _check_events(len(wire.events))
    events = [_event(raw) for raw in wire.events]
    return EventBatch(wire.ts, events, wire.dp_rank)


def encode_load(stat: LoadStat) -> bytes:
    """The payload of a load report."""
    return msgspec.msgpack.encode(stat)


def decode_load(payload: bytes) -> LoadStat:
    """The load report in `payload`. Raises `WireError` if it holds none."""
    return _decode(_load_decoder.decode, payload, "load report")


def encode_acknowledged(message: Acknowledged) -> bytes:
    """The payload of an acknowledgement."""
    return msgspec.msgpack.encode(message)


def decode_acknowledged(payload: bytes) -> Acknowledged:
    """The acknowledgement in `payload`. Raises `WireError` if it holds none."""
    return _decode(_acknowledged_decoder.decode, payload, "acknowledgement")


def encode_seq(seq: int) -> bytes:
    """A sequence number's frame."""
    return seq.to_bytes(SEQ_BYTES, "big")


def decode_seq(frame: bytes) -> int:
    """The sequence number in `frame`. Raises `WireError` unless it has 8 bytes."""
    if len(frame) != SEQ_BYTES:
        raise WireError(f"sequence number of {len(frame)} bytes; {SEQ_BYTES} are allowed")
    return int.from_bytes(frame, "big")


def split_message(frames: Sequence[bytes]) -> tuple[bytes, int, bytes]:
    """`(topic, seq, payload)` of a message. Raises `WireError` for any other shape."""
    if len(frames) != 3:
        raise WireError(f"message of {len(frames)} frames; 3 are allowed: topic, seq, payload")
    topic, seq, payload = frames
    return topic, decode_seq(seq), payload


# What arrives is read into these wider types first: hashes may be unsigned or raw bytes (vLLM), and the
# array format ends with `medium` (what follows it differs between SGLang and vLLM, and is ignored).

_WireHash = int | bytes


class _StoredArray(msgspec.Struct, array_like=True, tag="BlockStored", gc=False):
    block_hashes: list[_WireHash]
    parent_block_hash: _WireHash | None
    token_ids: list[int]
    block_size: Count
    lora_id: int | None = None
    medium: str | None = None


class _RemovedArray(msgspec.Struct, array_like=True, tag="BlockRemoved", gc=False):
    block_hashes: list[_WireHash]
    medium: str | None = None


class _ClearedArray(msgspec.Struct, array_like=True, tag="AllBlocksCleared", gc=False):
    pass


class _StoredMap(msgspec.Struct, tag="BlockStored", gc=False, kw_only=True):
    block_hashes: list[_WireHash]
    parent_block_hash: _WireHash | None = None
    token_ids: list[int]
    block_size: Count
    lora_id: int | None = None
    medium: str | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    lora_name: str | None = None


class _RemovedMap(msgspec.Struct, tag="BlockRemoved", gc=False):
    block_hashes: list[_WireHash]
    medium: str | None = None


class _ClearedMap(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    pass


class _WireBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[msgspec.Raw]
    dp_rank: int | None = None


_batch_decoder = msgspec.msgpack.Decoder(_WireBatch)
_array_decoder = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray)
_map_decoder = msgspec.msgpack.Decoder(_StoredMap | _RemovedMap | _ClearedMap)
_load_decoder = msgspec.msgpack.Decoder(LoadStat)
_acknowledged_decoder = msgspec.msgpack.Decoder(Acknowledged)


def _decode(decode: Callable[[bytes], Decoded], payload: bytes, what: str) -> Decoded:
    _check_size(payload)
    try:
        return decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WireError(f"invalid {what}: {error}") from None


def _event(raw: msgspec.Raw) -> CacheEvent:
    data = bytes(raw)
    # msgpack: 0x90..0x9f, 0xdc and 0xdd start an array.
    is_array = data[0] in (0xDC, 0xDD) or data[0] & 0xF0 == 0x90
    wire: Any = _decode(_array_decoder.decode if is_array else _map_decoder.decode, data, "cache event")
    if isinstance(wire, _ClearedArray | _ClearedMap):
        return AllBlocksCleared()
    _check_hashes(wire)
    hashes = [_signed(block_hash) for block_hash in wire.block_hashes]
    if isinstance(wire, _RemovedArray | _RemovedMap):
        return BlockRemoved(hashes, wire.medium)
    parent = None if wire.parent_block_hash is None else _signed(wire.parent_block_hash)
    stored = (hashes, parent, wire.token_ids, wire.block_size, wire.lora_id, wire.medium)
    if isinstance(wire, _StoredArray):
        return BlockStored(*stored)
    return BlockStored(*stored, wire.cache_salt, wire.session_id, wire.lora_name)


def _signed(block_hash: int | bytes) -> int:
    """A hash as signed int64: unsigned ones wrap, of raw bytes the first 8 count."""
    if isinstance(block_hash, int):
        return block_hash - 2**64 if block_hash >= 2**63 else block_hash
    if len(block_hash) < SEQ_BYTES:
        raise WireError(f"block hash of {len(block_hash)} bytes; at least 8 are needed")
    return int.from_bytes(block_hash[:8], "big", signed=True)


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


def _check_size(payload: bytes) -> None:
    if len(payload) > MAX_FRAME_BYTES:
        raise WireError(f"payload of {len(payload)} bytes; at most {MAX_FRAME_BYTES} are allowed")


def _check_events(count: int) -> None:
    if count > MAX_EVENTS_PER_BATCH:
        raise WireError(f"batch of {count} events; at most {MAX_EVENTS_PER_BATCH} are allowed")


def _check_hashes(event: Any) -> None:
    count = 0 if isinstance(event, AllBlocksCleared) else len(event.block_hashes)
    if count > MAX_HASHES_PER_EVENT:
        raise WireError(f"event of {count} block hashes; at most {MAX_HASHES_PER_EVENT} are allowed")
