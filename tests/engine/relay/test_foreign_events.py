"""Foreign payloads: the real systems' golden bytes, and strange events that cost only themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.relay.foreign_events import (
    ForeignCleared,
    ForeignRemoved,
    ForeignStored,
    decode_foreign,
)
from app.engine.relay.relay import Relay
from app.errors import WireError

GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "wire" / "golden_batches.jsonl").read_text().splitlines()
]
STORED = {
    "type": "BlockStored",
    "block_hashes": [1],
    "parent_block_hash": None,
    "token_ids": [5, 6],
    "block_size": 2,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
}


def payload(*events: Any) -> bytes:
    return msgspec.msgpack.encode([1.0, events, 0])


def golden_hash(value: Any) -> Any:
    return bytes.fromhex(value["bytes_hex"]) if isinstance(value, dict) else value


@pytest.mark.parametrize("line", GOLDEN, ids=lambda line: f"{line['source']}: {line['note']}")
def test_every_golden_batch_is_read_without_a_fault(line: dict[str, Any]) -> None:
    batch = decode_foreign(bytes.fromhex(line["msgpack_hex"]))
    assert not batch.faults
    assert len(batch.events) == len(line["events"])
    for event, fields in zip(batch.events, line["events"], strict=True):
        match event:
            case ForeignStored():
                assert event.block_hashes == [golden_hash(each) for each in fields["block_hashes"]]
                assert event.parent_block_hash == golden_hash(fields["parent_block_hash"])
                assert event.token_ids == fields["token_ids"]
                assert (event.block_size, event.medium) == (fields["block_size"], fields["medium"])
                assert event.extra_keys == fields.get("extra_keys")
                assert event.group_idx == fields.get("group_idx")
                assert event.cache_salt == fields.get("cache_salt")
            case ForeignRemoved():
                assert event.block_hashes == [golden_hash(each) for each in fields["block_hashes"]]
                assert event.medium == fields["medium"]
            case ForeignCleared():
                assert fields["type"] == "AllBlocksCleared"


@pytest.mark.parametrize(
    ("strange", "kind", "text"),
    [
        ({"type": "BlockMoved", "block_hashes": [1]}, "unknown_type", "BlockMoved"),
        (["BlockMoved", [1]], "unknown_type", "BlockMoved"),
        (7, "unknown_type", "None"),
        ({**STORED, "token_ids": [[5, 6], [6, 7]]}, "bigram", "2 token pairs"),
        (["BlockStored", [1], None, [[5, 6], [6, 7]], 2], "bigram", "2 token pairs"),
        ({**STORED, "block_size": "two"}, "unreadable", "block_size"),
        ({**STORED, "block_hashes": ["one"]}, "unreadable", "block_hashes"),
        ({**STORED, "block_hashes": [2**64 - 1, None]}, "unreadable", "block_hashes"),
        ({**STORED, "extra_keys": [5]}, "unreadable", "extra_keys"),
        (["BlockStored", [1], None, [5, 6], 2, None, "GPU", None, [5]], "unreadable", "Expected"),
        ({"type": "BlockRemoved", "block_hashes": [1], "group_idx": "first"}, "unreadable", "group_idx"),
    ],
)
def test_a_strange_event_costs_only_itself(strange: Any, kind: str, text: str) -> None:
    batch = decode_foreign(payload(STORED, strange, ["AllBlocksCleared"]))
    assert [type(event) for event in batch.events] == [ForeignStored, ForeignCleared]
    (fault,) = batch.faults
    assert fault.kind == kind
    assert text in fault.text
    relay = Relay(2, hashes="opaque", source="a worker")
    relay.apply(payload(STORED, strange))
    assert relay.num_blocks == 1
    assert relay.counters.faults == {kind: 1}
    assert relay.counters.last_fault == fault.text


def test_unknown_keys_and_extra_elements_are_ignored() -> None:
    more = {**STORED, "lookahead_token_ids": [1], "new": {"a": 1}}
    assert not decode_foreign(payload(more)).faults
    array = ["BlockStored", [1], None, [5, 6], 2, None, "GPU", None, [None], 0, "full_attention", 1, 2, 3]
    (event,) = decode_foreign(payload(array)).events
    assert isinstance(event, ForeignStored)
    assert (event.group_idx, event.kv_cache_spec_kind) == (0, "full_attention")


@given(st.binary(max_size=200))
def test_noise_is_a_wire_error_and_nothing_else(noise: bytes) -> None:
    try:
        decode_foreign(noise)
    except WireError:
        Relay(2, hashes="opaque", source="noise").apply(noise)


VALUES = [
    *[None, True, -1, 0, 1, 2, 2**63, 2**64 - 1, -(2**63), 1.5, "", "salt", b"", b"12345678", b"1" * 32],
    *[
        [],
        [None],
        [1],
        [1, 1],
        [2, 1],
        [5, 6, 7, 8],
        [-1, 2],
        [2**32, 1],
        [[1, 2]],
        [["salt"]],
        [b"1", b"1"],
        {},
    ],
]
fields = st.dictionaries(
    st.sampled_from([*STORED, "extra_keys", "group_idx", "cache_salt"]), st.sampled_from(VALUES), max_size=4
)


@given(st.lists(fields, max_size=4), st.sampled_from(["opaque", "chained"]))
def test_a_relay_takes_any_fields(changes: list[dict[str, Any]], hashes: Any) -> None:
    relay = Relay(2, hashes=hashes, source="a worker")
    for event in ({**STORED, **change, "type": "BlockStored"} for change in changes):
        relay.apply(payload(event, {"type": "BlockRemoved", "block_hashes": event["block_hashes"]}))
        relay.check_integrity()
