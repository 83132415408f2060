"""What travels on the event and load sockets: the types, the caps and the frames.

A message is three frames, `topic | seq (8 bytes, big-endian) | msgpack payload`. The payload of events is in
`app.events.batch_codec`. Decoders raise nothing but `WireError`, whatever the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeVar

import msgspec

from app.errors import WireError

MAX_FRAME_BYTES = 8 * 2**20
MAX_EVENTS_PER_BATCH = 65_536
MAX_HASHES_PER_EVENT = 65_536
MAX_ACKNOWLEDGED = 65_536

MEDIUM = "GPU"
"""The name of the engine's own cache, whatever its device: what SGLang's consumers expect."""
ACK_TOPIC = b"ack"
SEQ_BYTES = 8
DECODE_FAULTS = (msgspec.MsgspecError, ValueError, RecursionError)
"""All that msgspec's decoders raise, whatever the bytes."""
MAX_QUOTED = 200
"""Characters of a decoder's error that are passed on: some errors quote the whole of what was sent."""

Format = Literal["map", "array"]
Count = Annotated[int, msgspec.Meta(ge=0)]
BlockHash = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
BlockHashes = Annotated[list[BlockHash], msgspec.Meta(max_length=MAX_HASHES_PER_EVENT)]
Decoded = TypeVar("Decoded")


def _null() -> None:
    """The default of a key that is always sent: `omit_defaults` would leave a plain None out.

    vLLM's classes refuse an event without `lora_id`, `medium` or `lora_name`.
    """


class BlockStored(msgspec.Struct, frozen=True, omit_defaults=True, tag=True, gc=False):
    """Consecutive blocks that are now in the cache.

    `block_hashes` are wire hashes (signed int64) in chain order, `parent_block_hash` the one before the
    first (None at the root), `token_ids` the tokens of all the blocks: `len(block_hashes) * block_size`.
    """

    block_hashes: BlockHashes
    parent_block_hash: BlockHash | None
    token_ids: list[int]
    block_size: Count
    lora_id: int | None = msgspec.field(default_factory=_null)
    medium: str | None = msgspec.field(default_factory=_null)
    cache_salt: str | None = None
    session_id: str | None = None
    lora_name: str | None = msgspec.field(default_factory=_null)


class BlockRemoved(msgspec.Struct, frozen=True, omit_defaults=True, tag=True, gc=False):
    """Blocks that have left the cache."""

    block_hashes: BlockHashes
    medium: str | None = msgspec.field(default_factory=_null)


class AllBlocksCleared(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The cache is empty now: a reset, or a publisher's first message."""


CacheEvent = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, frozen=True, array_like=True):
    """One message of events: what changed in a rank's cache in one step. `ts` is Unix time in seconds."""

    ts: float
    events: Annotated[list[CacheEvent], msgspec.Meta(max_length=MAX_EVENTS_PER_BATCH)]
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
    """Requests that the rank's load reports count from now on, so that they need no reservation any more."""

    dp_rank: Count
    request_ids: Annotated[list[str], msgspec.Meta(max_length=MAX_ACKNOWLEDGED)]


_load_decoder = msgspec.msgpack.Decoder(LoadStat)
_acknowledged_decoder = msgspec.msgpack.Decoder(Acknowledged)


def encode_load(stat: LoadStat) -> bytes:
    """The payload of a load report."""
    return msgspec.msgpack.encode(stat)


def decode_load(payload: bytes) -> LoadStat:
    """The load report in `payload`. Raises `WireError` if it holds none."""
    return decode_capped(_load_decoder.decode, payload, "load report")


def encode_acknowledged(message: Acknowledged) -> bytes:
    """The payload of an acknowledgement."""
    return msgspec.msgpack.encode(message)


def decode_acknowledged(payload: bytes) -> Acknowledged:
    """The acknowledgement in `payload`. Raises `WireError` if it holds none."""
    return decode_capped(_acknowledged_decoder.decode, payload, "acknowledgement")


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


def decode_capped(decode: Callable[[bytes], Decoded], payload: bytes, what: str) -> Decoded:
    """`decode(payload)`, or `WireError` where that fails or the payload is beyond the cap."""
    check_size(payload)
    try:
        return decode(payload)
    except DECODE_FAULTS as error:
        raise WireError(f"invalid {what}: {str(error)[:MAX_QUOTED]}") from None


def check_size(payload: bytes) -> None:
    """Raise `WireError` for a payload that no frame may hold."""
    if len(payload) > MAX_FRAME_BYTES:
        raise WireError(f"payload of {len(payload)} bytes; at most {MAX_FRAME_BYTES} are allowed")
