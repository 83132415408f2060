"""The codecs against golden bytes of the real systems, against themselves, and against noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import WireError
from app.events import schema
from app.events.batch_codec import decode_batch, encode_batch
from app.events.schema import (
    Acknowledged,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    LoadStat,
    decode_acknowledged,
    decode_load,
    decode_seq,
    encode_acknowledged,
    encode_load,
    encode_seq,
    split_message,
)

GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "wire" / "golden_batches.jsonl").read_text().splitlines()
]
KNOWN_FIELDS = {field.name for field in msgspec.structs.fields(BlockStored)}


def golden_id(line: dict[str, Any]) -> str:
    return f"{line['source']}: {line['note']}"


def expected_hash(value: int | dict[str, str]) -> int:
    if isinstance(value, dict):
        return int.from_bytes(bytes.fromhex(value["bytes_hex"])[:8], "big", signed=True)
    return (value + 2**63) % 2**64 - 2**63


def expected_event(fields: dict[str, Any]) -> schema.CacheEvent:
    if fields["type"] == "AllBlocksCleared":
        return AllBlocksCleared()
    hashes = [expected_hash(value) for value in fields["block_hashes"]]
    if fields["type"] == "BlockRemoved":
        return BlockRemoved(hashes, fields["medium"])
    known = {key: value for key, value in fields.items() if key in KNOWN_FIELDS}
    parent = fields["parent_block_hash"]
    parent_hash = None if parent is None else expected_hash(parent)
    return BlockStored(**known | {"block_hashes": hashes, "parent_block_hash": parent_hash})


@pytest.mark.parametrize("line", GOLDEN, ids=golden_id)
def test_every_golden_batch_is_read_as_what_went_in(line: dict[str, Any]) -> None:
    batch = decode_batch(bytes.fromhex(line["msgpack_hex"]))
    rank = line["batch"].get("attn_dp_rank", line["batch"].get("data_parallel_rank"))
    assert batch == EventBatch(line["batch"]["ts"], [expected_event(e) for e in line["events"]], rank)


def golden_of(*sources: str) -> list[dict[str, Any]]:
    return [line for line in GOLDEN if line["source"].startswith(sources)]


@pytest.mark.parametrize("line", golden_of("sglang 0.5.13"), ids=golden_id)
def test_sglangs_golden_arrays_are_written_byte_for_byte(line: dict[str, Any]) -> None:
    batch = EventBatch(
        line["batch"]["ts"], [expected_event(e) for e in line["events"]], line["batch"]["attn_dp_rank"]
    )
    assert encode_batch(batch, "array").hex() == line["msgpack_hex"]


ALWAYS_SENT = {
    "BlockStored": {"lora_id": None, "medium": None, "lora_name": None},
    "BlockRemoved": {"medium": None},
    "AllBlocksCleared": {},
}
"""vLLM's classes refuse a map without these keys; SGLang's read them where they are."""


@pytest.mark.parametrize("line", golden_of("sglang 0.5.23", "vllm"), ids=golden_id)
def test_golden_maps_are_written_with_every_key_that_vllm_requires(line: dict[str, Any]) -> None:
    """Keys that aren't ours (`group_idx`, `extra_keys`) are left out, and hashes are signed int64."""
    batch = decode_batch(bytes.fromhex(line["msgpack_hex"]))
    known = KNOWN_FIELDS | {"type"}
    golden = msgspec.msgpack.decode(bytes.fromhex(line["msgpack_hex"]))[1]
    written = msgspec.msgpack.decode(encode_batch(batch))[1]
    for event, original in zip(written, golden, strict=True):
        expected = ALWAYS_SENT[original["type"]] | {k: v for k, v in original.items() if k in known}
        assert event.keys() == expected.keys()
        for key in expected.keys() - {"block_hashes", "parent_block_hash"}:
            assert event[key] == expected[key]


def test_missing_optional_keys_rank_and_unknown_keys_are_no_error() -> None:
    event = {"type": "BlockStored", "block_hashes": [1], "token_ids": [5], "block_size": 1, "new_key": [{}]}
    payload = msgspec.msgpack.encode([1, [event, {"type": "BlockRemoved", "block_hashes": [2]}]])
    assert decode_batch(payload) == EventBatch(1.0, [BlockStored([1], None, [5], 1), BlockRemoved([2])])


def test_what_follows_the_medium_in_an_array_is_ignored() -> None:
    event = ["BlockStored", [2**64 - 1], None, [5], 1, None, "GPU", "a-lora", ["extra"]]
    payload = msgspec.msgpack.encode([1.0, [event], 0, "later"])
    assert decode_batch(payload).events == [BlockStored([-1], None, [5], 1, medium="GPU")]


int64 = st.integers(-(2**63), 2**63 - 1)
maybe_text = st.none() | st.text(max_size=8)
stored_events = st.builds(
    BlockStored,
    block_hashes=st.lists(int64, max_size=5),
    parent_block_hash=st.none() | int64,
    token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=8),
    block_size=st.integers(0, 1024),
    lora_id=st.none() | st.integers(0, 9),
    medium=maybe_text,
)
other_events = st.builds(BlockRemoved, st.lists(int64, max_size=5), maybe_text) | st.just(AllBlocksCleared())
ranks = st.none() | st.integers(0, 1023)
finite = st.floats(allow_nan=False)
map_only_events = st.builds(
    BlockStored,
    st.just([1]),
    st.none(),
    st.just([1]),
    st.just(1),
    cache_salt=maybe_text,
    session_id=maybe_text,
    lora_name=maybe_text,
)
batches = st.builds(EventBatch, finite, st.lists(stored_events | other_events, max_size=4), ranks)


@given(batches, st.sampled_from(["map", "array"]))
def test_a_batch_survives_the_wire_in_both_formats(batch: EventBatch, format: schema.Format) -> None:
    assert decode_batch(encode_batch(batch, format)) == batch


@given(map_only_events)
def test_the_map_format_keeps_every_field(event: BlockStored) -> None:
    assert decode_batch(encode_batch(EventBatch(0.0, [event]))).events == [event]


@given(st.lists(st.integers(0, 2**63), min_size=10, max_size=10))
def test_a_load_report_survives_the_wire(numbers: list[int]) -> None:
    assert decode_load(encode_load(LoadStat(*numbers))) == LoadStat(*numbers)


def test_a_load_report_is_the_array_that_sglang_sends() -> None:
    payload = encode_load(LoadStat(1, 2, 3, 4, 5, 6, 7, 8, 9, 10))
    assert msgspec.msgpack.decode(payload) == ["LoadStat", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


@given(st.integers(0, 1023), st.lists(st.text(max_size=8), max_size=5))
def test_an_acknowledgement_survives_the_wire(rank: int, ids: list[str]) -> None:
    payload = encode_acknowledged(Acknowledged(rank, ids))
    assert msgspec.msgpack.decode(payload) == [rank, ids]
    assert decode_acknowledged(payload) == Acknowledged(rank, ids)


DECODERS: list[Callable[[bytes], object]] = [decode_batch, decode_load, decode_acknowledged]


def decode_by_all(payload: bytes) -> None:
    for decode in DECODERS:
        with suppress(WireError):
            decode(payload)


@given(st.binary(max_size=200))
def test_noise_raises_nothing_but_wire_error(noise: bytes) -> None:
    decode_by_all(noise)


@given(st.sampled_from(GOLDEN), st.data())
def test_mutated_batches_raise_nothing_but_wire_error(line: dict[str, Any], data: st.DataObject) -> None:
    payload = bytearray.fromhex(line["msgpack_hex"])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    del payload[data.draw(st.integers(0, len(payload))) :]
    decode_by_all(bytes(payload))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\x93\x01\x91" + b"\x91" * 100_000 + b"\xc0\xc0", id="deep nesting"),
        pytest.param(b"\x93\x01\xdd\xff\xff\xff\xff", id="array of 4 billion"),
        pytest.param(msgspec.msgpack.encode([1.0, [["Unknown", [1]]], 0]), id="unknown event"),
        pytest.param(msgspec.msgpack.encode([1.0, [["BlockRemoved", [b"short"]]], 0]), id="short raw hash"),
        pytest.param(msgspec.msgpack.encode([1.0, [["BlockRemoved", [1.5]]], 0]), id="float hash"),
        pytest.param(
            msgspec.msgpack.encode([1.0, [["AllBlocksCleared"]] * (schema.MAX_EVENTS_PER_BATCH + 1)]),
            id="too many events",
        ),
        pytest.param(
            msgspec.msgpack.encode([1.0, [["BlockRemoved", [1] * (schema.MAX_HASHES_PER_EVENT + 1)]]]),
            id="too many hashes",
        ),
        pytest.param(bytes(schema.MAX_FRAME_BYTES + 1), id="too big"),
    ],
)
def test_a_batch_beyond_the_protocol_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        decode_batch(payload)


@pytest.mark.parametrize("format", ["map", "array"])
def test_a_negative_block_size_is_refused(format: schema.Format) -> None:
    payload = encode_batch(EventBatch(0.0, [BlockStored([1], None, [], -1)]), format)
    with pytest.raises(WireError, match="invalid event batch"):
        decode_batch(payload)


def test_an_error_quotes_little_of_what_was_sent() -> None:
    with pytest.raises(WireError, match="Invalid value 'tttt") as caught:
        decode_batch(msgspec.msgpack.encode([1.0, [{"type": "t" * 1_000_000}], 0]))
    assert len(str(caught.value)) < 1_000


def test_a_negative_load_is_refused() -> None:
    with pytest.raises(WireError, match="load report"):
        decode_load(msgspec.msgpack.encode(["LoadStat", -1, *range(9)]))


def test_the_encoder_keeps_to_the_caps_that_the_decoder_enforces() -> None:
    with pytest.raises(WireError, match="65537 block hashes"):
        encode_batch(EventBatch(0.0, [BlockRemoved([0] * 65_537)]))


@given(st.integers(0, 2**64 - 1))
def test_a_sequence_number_survives_the_wire(seq: int) -> None:
    assert split_message([b"topic", encode_seq(seq), b"payload"]) == (b"topic", seq, b"payload")


@pytest.mark.parametrize("frames", [[], [b""] * 2, [b"", bytes(7), b""], [b"", bytes(8), b"", b""]])
def test_a_message_of_another_shape_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        split_message(frames)


def test_a_sequence_frame_is_eight_bytes_big_endian() -> None:
    assert encode_seq(258) == b"\0\0\0\0\0\0\1\2"
    assert decode_seq(b"\0\0\0\0\0\0\1\2") == 258
