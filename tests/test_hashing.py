"""The block hash against vectors that SGLang's own code made, and its chain property."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import hashing

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parent / "wire/golden_hashes.json").read_text())

token_ids = st.lists(st.integers(0, 2**32 - 1), max_size=40)
block_sizes = st.integers(1, 9)


def wire_hashes(tokens: list[int], block_size: int, cache_salt: str | None = None) -> list[int]:
    return [hashing.wire_hash(each) for each in hashing.chain(tokens, block_size, hashing.seed(cache_salt))]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{len(golden['token_ids'])} tokens")
def test_golden(golden: dict[str, Any]) -> None:
    assert (
        wire_hashes(golden["token_ids"], golden["block_size"], golden["cache_salt"]) == golden["block_hashes"]
    )


@given(token_ids, block_sizes)
def test_a_partial_last_block_has_no_hash(tokens: list[int], block_size: int) -> None:
    assert len(hashing.chain(tokens, block_size)) == len(tokens) // block_size


@given(token_ids, token_ids, block_sizes)
def test_a_prefixs_hashes_are_the_first_of_the_whole(
    head: list[int], tail: list[int], block_size: int
) -> None:
    chain = hashing.chain(head, block_size)
    assert hashing.chain(head + tail, block_size)[: len(chain)] == chain


@given(token_ids, block_sizes, st.integers(0, 4))
def test_a_chain_can_be_continued_from_any_block(tokens: list[int], block_size: int, start: int) -> None:
    whole = hashing.chain(tokens, block_size)
    start = min(start, len(whole))
    parent = whole[start - 1] if start else hashing.ROOT
    assert hashing.chain(tokens[start * block_size :], block_size, parent) == whole[start:]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4), st.integers(0, 3), st.integers(1, 2**31))
def test_another_token_anywhere_changes_every_later_hash(tokens: list[int], place: int, change: int) -> None:
    other = list(tokens)
    other[place] = (other[place] + change) % 2**32
    here, there = wire_hashes(tokens, 1), wire_hashes(other, 1)
    assert here[:place] == there[:place]
    assert not set(here[place:]) & set(there[place:])


def test_salts_keep_equal_tokens_apart() -> None:
    hashes = {salt: wire_hashes([1, 2, 3, 4], 2, salt) for salt in (None, "", "a", "b")}
    assert len({block for chain in hashes.values() for block in chain}) == 8


@given(st.binary(min_size=32, max_size=32))
def test_a_wire_hash_is_the_digests_first_64_bits(digest: bytes) -> None:
    name = hashing.wire_hash(digest)
    assert -(2**63) <= name < 2**63
    assert name % 2**64 == int(digest.hex()[:16], 16)


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_that_does_not_fit_32_bits(token: int) -> None:
    with pytest.raises(OverflowError):
        hashing.chain([token], 1)
