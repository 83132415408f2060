"""The block hash against vectors that SGLang's own code made, and its chain property."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
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


names = st.text(min_size=1, max_size=12)
pairs = st.tuples(names, st.none() | names)


@given(st.sets(pairs, max_size=12))
@settings(deadline=None)
def test_two_pairs_of_tenant_and_salt_have_no_salt_in_common(some: set[tuple[str, str | None]]) -> None:
    assert len({hashing.seed(hashing.tenant_salt(*pair)) for pair in some}) == len(some)


@given(names, st.data())
@settings(deadline=None)
def test_where_a_tenants_name_ends_and_its_salt_begins_is_never_in_doubt(
    name: str, data: st.DataObject
) -> None:
    """Also with what stands between them inside either."""
    whole = data.draw(st.sampled_from(["", "\0", "\0\0", ":", ","])) + name + "\0" + name
    cuts = [(whole[:end], whole[end + gap :] or None) for end in range(1, len(whole) + 1) for gap in (0, 1)]
    assert len({hashing.tenant_salt(*cut) for cut in set(cuts)}) == len(set(cuts))


def test_a_tenants_salt_is_what_its_formula_says() -> None:
    for own, tail in ((None, b""), ("b", b"\0b")):
        scope = b"kvbeacon-tenant-salt-v1\0" + b"\2\0\0\0" + "é".encode() + tail
        assert hashing.tenant_salt("é", own) == hashlib.shake_256(scope).hexdigest(256)


def test_a_tenants_salt_is_none_that_a_body_can_carry() -> None:
    """So a client that reaches a rank through an ingress without tenants can't hit a tenant's blocks."""
    ours = hashing.tenant_salt("a", "b")
    assert len(ours) > hashing.MAX_SALT_CHARS
    others = [None, "a", "b", "ab", "a\0b", ours[: hashing.MAX_SALT_CHARS]]
    others += [hashing.tenant_salt(*pair) for pair in (("ab", None), ("a", None), ("b", "a"), ("a", ours))]
    assert hashing.seed(ours) not in {hashing.seed(other) for other in others}


def test_names_are_compared_byte_for_byte() -> None:
    """Forms that Unicode holds for equal, and letters' case, are different tenants and different salts."""
    spellings = ["é", "e\u0301", "É", "ﬁ", "fi", "K", "\u212a", "a", "A", "a ", "а"]
    salts = {hashing.tenant_salt(name, None) for name in spellings}
    salts |= {hashing.tenant_salt("a", name) for name in spellings}
    assert len(salts) == 2 * len(spellings)


@given(token_ids, token_ids, block_sizes)
@settings(deadline=None)
def test_tenants_have_no_block_in_common(ours: list[int], theirs: list[int], block_size: int) -> None:
    here, there = (
        set(wire_hashes(tokens, block_size, hashing.tenant_salt(tenant, None)))
        for tenant, tokens in (("a", ours), ("b", theirs))
    )
    assert not here & (there | set(wire_hashes(ours, block_size)) | set(wire_hashes(theirs, block_size)))


@given(st.binary(min_size=32, max_size=32))
def test_a_wire_hash_is_the_digests_first_64_bits(digest: bytes) -> None:
    name = hashing.wire_hash(digest)
    assert -(2**63) <= name < 2**63
    assert name % 2**64 == int(digest.hex()[:16], 16)


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_that_does_not_fit_32_bits(token: int) -> None:
    with pytest.raises(OverflowError):
        hashing.chain([token], 1)
