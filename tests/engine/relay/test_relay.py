"""What the relay credits and what it keeps apart, case by case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from app import hashing
from app.engine.relay.placement import MAX_SALTS
from app.engine.relay.relay import HashKind, Relay
from app.engine.relay.relayed_cache import RelayedCache
from app.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, CacheEvent
from tests.support.engine.foreign_cache import ForeignCache, Prompt

BLOCK = 4
TOKENS = tuple(range(100, 124))


def relay_of(hashes: HashKind = "opaque") -> Relay:
    return Relay(BLOCK, hashes=hashes, source="a worker")


def names(salt: str | None = None) -> list[int]:
    return hashing.wire_hashes(hashing.chain(TOKENS, BLOCK, hashing.seed(salt)))


def apply(relay: Relay, cache: ForeignCache) -> list[CacheEvent]:
    events = relay.apply(cache.payload())
    relay.check_integrity()
    return events


def apply_event(relay: Relay, **fields: Any) -> list[CacheEvent]:
    return relay.apply(msgspec.msgpack.encode([0.0, [fields], 0]))


def held(relay: Relay) -> list[int]:
    return [block.hash for block in relay.content]


def test_one_foreign_event_is_one_of_ours_in_our_chain() -> None:
    relay, cache = relay_of(), ForeignCache(BLOCK)
    cache.store(Prompt(TOKENS), 0, 2)
    assert apply(relay, cache) == [BlockStored(names()[:2], None, list(TOKENS[:8]), BLOCK, medium="GPU")]
    cache.store(Prompt(TOKENS), 2, 3)
    assert apply(relay, cache) == [
        BlockStored(names()[2:3], names()[1], list(TOKENS[8:12]), BLOCK, medium="GPU")
    ]
    cache.remove([(None, cache.key(Prompt(TOKENS), count)) for count in (3, 2)])
    assert apply(relay, cache) == [BlockRemoved([names()[2], names()[1]], "GPU")]
    cache.clear()
    assert apply(relay, cache) == [AllBlocksCleared()]
    assert relay.num_blocks == 0


def test_a_block_is_held_until_its_last_copy_is_gone() -> None:
    relay, cache = relay_of(), ForeignCache(BLOCK)
    first = (None, cache.key(Prompt(TOKENS), 1))
    cache.store(Prompt(TOKENS), 0, 1)
    cache.store(Prompt(TOKENS), 0, 1)
    cache.remove([first])
    assert len(apply(relay, cache)) == 1
    assert held(relay) == names()[:1]
    cache.remove([first])
    assert apply(relay, cache) == [BlockRemoved(names()[:1], "GPU")]


def test_what_follows_an_evicted_block_is_not_credited_until_that_is_back() -> None:
    relay, cache = relay_of(), ForeignCache(BLOCK)
    cache.store(Prompt(TOKENS), 0, 4)
    apply(relay, cache)
    cache.remove([(None, cache.key(Prompt(TOKENS), 2))])
    assert apply(relay, cache) == [BlockRemoved(names()[1:4], "GPU")]
    assert relay.counters.unreachable == 2
    cache.store(Prompt(TOKENS), 1, 2)
    assert apply(relay, cache) == [
        BlockStored(names()[1:2], names()[0], list(TOKENS[4:8]), BLOCK, medium="GPU"),
        BlockStored(names()[2:4], names()[1], [], BLOCK, medium="GPU"),
    ]
    assert relay.counters.unreachable == 0


@pytest.mark.parametrize(
    ("prompt", "num_credited", "reason"),
    [
        (Prompt(TOKENS, lora="adapter"), 0, "lora"),
        (Prompt(TOKENS, image="an image"), 1, "multimodal"),
        (Prompt(TOKENS, image="an image", salt="a salt"), 1, "multimodal"),
    ],
)
def test_what_no_plain_prompt_can_hit_is_kept_apart(prompt: Prompt, num_credited: int, reason: str) -> None:
    relay, cache = relay_of(), ForeignCache(BLOCK)
    cache.store(prompt, 0, 2)
    cache.store(prompt, 2, 4)  # inherits it
    apply(relay, cache)
    assert held(relay) == names(prompt.salt)[:num_credited]
    assert relay.counters.kept_apart == {reason: 4 - num_credited}
    cache.remove(list(cache.entries))
    apply(relay, cache)
    assert relay.counters.kept_apart == {}
    assert relay.counters.unknown_removed == 0


def test_embeddings_and_unknown_keys_are_kept_apart() -> None:
    relay, cache = relay_of(), ForeignCache(BLOCK)
    for key, extra in enumerate([[b"digest"], [1.5], ["a salt", "an old image"]]):
        cache.store(Prompt((key, *TOKENS[1:])), 0, 1)
        cache.events[-1]["extra_keys"] = [extra]
    apply(relay, cache)
    assert relay.num_blocks == 0
    assert relay.counters.kept_apart == {"prompt_embeds": 1, "unknown_extra_key": 1, "multimodal": 1}


def test_a_salt_is_found_in_the_first_blocks_keys() -> None:
    relay, cache = relay_of(), ForeignCache(BLOCK)
    cache.store(Prompt(TOKENS, salt="a salt"), 0, 3)
    apply(relay, cache)
    assert held(relay) == names("a salt")[:3]


def test_other_media_and_groups_are_counted_and_not_credited() -> None:
    relay, cache = relay_of(), ForeignCache(BLOCK, groups={0: "full_attention", 1: "sliding_window"})
    cache.store(Prompt(TOKENS), 0, 3, medium="CPU")
    cache.remove_elsewhere(Prompt(TOKENS), "CPU")
    assert apply(relay, cache) == []
    cache.store(Prompt(TOKENS), 0, 3)
    apply(relay, cache)
    cache.remove([(1, cache.key(Prompt(TOKENS), 1))])
    apply(relay, cache)
    assert held(relay) == names()[:3]
    counters = relay.counters
    assert counters.not_followed == {"medium:CPU": 6, "group:sliding_window": 3}
    assert counters.unknown_removed == 0


def test_a_block_that_one_of_two_full_groups_has_lost_is_not_credited() -> None:
    relay, cache = relay_of(), ForeignCache(BLOCK, groups={0: "full_attention", 1: "full_attention"})
    cache.store(Prompt(TOKENS), 0, 3)
    apply(relay, cache)
    assert held(relay) == names()[:3]
    cache.remove([(1, cache.key(Prompt(TOKENS), 3))])
    assert apply(relay, cache) == [BlockRemoved(names()[2:3], "GPU")]


def test_blocks_after_an_unknown_one_are_kept_apart_until_they_come_again() -> None:
    relay, cache = relay_of(), ForeignCache(BLOCK)
    cache.store(Prompt(TOKENS), 1, 3)
    assert apply(relay, cache) == []
    assert relay.counters.kept_apart == {"unknown_parent": 2}
    cache.store(Prompt(TOKENS), 0, 3)
    apply(relay, cache)
    assert held(relay) == names()[:3]
    assert relay.counters.kept_apart == {}
    cache.remove([(None, cache.key(Prompt(TOKENS), 3))])
    apply(relay, cache)
    assert held(relay) == names()[:3]  # a copy is left


@pytest.mark.parametrize(
    ("block_size", "num_blocks", "credited"), [(1, 11, 2), (3, 3, 2), (6, 1, 1), (8, 2, 4)]
)
@pytest.mark.parametrize("chained", [False, True])
def test_another_block_size_is_translated_by_token(
    block_size: int, num_blocks: int, credited: int, chained: bool
) -> None:
    relay = relay_of("chained" if chained else "opaque")
    cache = ForeignCache(block_size, chained)
    cache.store(Prompt(TOKENS), 0, num_blocks)
    (event,) = apply(relay, cache)
    assert event == BlockStored(
        names()[:credited], None, list(TOKENS[: credited * BLOCK]), BLOCK, medium="GPU"
    )


def test_chained_hashes_are_taken_as_they_are_without_tokens_and_with_any_salt() -> None:
    relay, cache = relay_of("chained"), ForeignCache(BLOCK, chained=True, with_tokens=False)
    cache.store(Prompt(TOKENS, salt="never heard of"), 0, 3)
    assert apply(relay, cache) == [BlockStored(names("never heard of")[:3], None, [], BLOCK, medium="GPU")]
    unsigned = names()[0] % 2**64
    stored = {
        "type": "BlockStored",
        "block_hashes": [unsigned],
        "token_ids": list(TOKENS[:4]),
        "block_size": 4,
    }
    apply_event(relay, **stored)
    assert held(relay)[-1] == names()[0]
    assert relay.counters.other_roots == 0


def test_a_chained_root_that_is_not_its_tokens_hash_is_counted() -> None:
    relay = relay_of("chained")
    root = {"type": "BlockStored", "token_ids": list(TOKENS[:4]), "block_size": 4}
    apply_event(relay, **root, block_hashes=[names("a salt")[0]])
    assert relay.counters.other_roots == 1
    # A worker that doesn't hash the salt would share a salted block with everyone.
    apply_event(relay, **root, block_hashes=[names()[0]], cache_salt="a salt")
    assert held(relay) == [names("a salt")[0]]
    assert relay.counters.kept_apart == {"salt_not_hashed": 1}


def test_chained_roots_of_another_block_size_need_a_known_salt() -> None:
    relay, cache = relay_of("chained"), ForeignCache(2, chained=True)
    cache.store(Prompt(TOKENS, salt="a salt"), 0, 6)
    apply(relay, cache)
    assert relay.counters.kept_apart == {"unknown_salt": 6}
    for number in range(MAX_SALTS):
        relay.add_salt(f"other {number}")
    relay.add_salt("a salt")
    cache.store(Prompt(TOKENS, salt="a salt"), 0, 6)
    apply(relay, cache)
    assert held(relay) == names("a salt")[:3]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"token_ids": [1, 2, 3]}, "token_count"),
        ({"token_ids": []}, "token_count"),
        ({"block_size": 0}, "block_size"),
        ({"token_ids": [1, 2, 3, 2**32]}, "token_id"),
        ({"token_ids": [1, 2, 3, -1]}, "token_id"),
    ],
)
def test_an_event_that_contradicts_itself_is_a_fault(change: dict[str, Any], kind: str) -> None:
    relay = relay_of()
    stored = {"type": "BlockStored", "block_hashes": [1], "token_ids": [1, 2, 3, 4], "block_size": 4}
    assert apply_event(relay, **{**stored, **change}) == []
    assert relay.counters.faults == {kind: 1}


def test_a_worker_may_not_change_its_block_size_where_hashes_depend_on_it() -> None:
    relay = relay_of("chained")
    for size in (4, 2):
        apply_event(relay, type="BlockStored", block_hashes=[size], token_ids=[1] * size, block_size=size)
    assert relay.counters.faults == {"block_size": 1}
    assert relay.num_blocks == 1


def test_clear_holds_nothing_and_says_so() -> None:
    relay, cache = relay_of(), ForeignCache(BLOCK)
    cache.store(Prompt(TOKENS), 0, 3)
    apply(relay, cache)
    assert relay.clear() == [AllBlocksCleared()]
    assert held(relay) == []
    cache.remove([(None, cache.key(Prompt(TOKENS), 1))])
    apply(relay, cache)
    assert relay.counters.unknown_removed == 1


def test_a_worker_that_starts_again_may_have_other_block_sizes_and_groups() -> None:
    relay = relay_of("chained")
    stored = {"type": "BlockStored", "parent_block_hash": None, "token_ids": list(TOKENS[:BLOCK])}
    apply_event(relay, **stored | {"block_hashes": [1], "block_size": 3})
    assert relay.counters.faults == {"token_count": 1}
    apply_event(relay, **stored | {"block_hashes": names()[:1], "block_size": BLOCK})
    assert held(relay) == names()[:1]  # what couldn't be used says nothing of the others
    relay.clear()
    apply_event(relay, **stored | {"block_hashes": [7, 8], "block_size": BLOCK // 2})
    assert relay.counters.num_foreign_blocks == 2

    relay = relay_of()
    other = {"group_idx": 0, "kv_cache_spec_kind": "sliding_window"}
    apply_event(relay, **stored | other | {"block_hashes": [1], "block_size": BLOCK})
    relay.clear()
    apply_event(relay, **stored | {"block_hashes": [1], "block_size": BLOCK, "group_idx": 0})
    assert held(relay) == names()[:1]
    apply_event(relay, type="BlockRemoved", block_hashes=[1], group_idx=0)
    assert held(relay) == []


def test_blocks_without_an_entry_of_extra_keys_are_kept_apart() -> None:
    relay = relay_of()
    apply_event(
        relay,
        type="BlockStored",
        block_hashes=[1, 2, 3],
        token_ids=list(TOKENS[: 3 * BLOCK]),
        block_size=BLOCK,
        extra_keys=[["salt"]],
    )
    assert held(relay) == names("salt")[:1]
    assert relay.counters.kept_apart == {"unknown_extra_key": 2}


def test_many_branches_are_removed_one_by_one_in_any_order() -> None:
    for order in (range(1, 200), range(199, 0, -1)):
        relay = relay_of()
        stored = {"type": "BlockStored", "block_size": BLOCK}
        apply_event(relay, **stored, block_hashes=[0], parent_block_hash=None, token_ids=[7] * BLOCK)
        for key in range(1, 200):
            apply_event(relay, **stored, block_hashes=[key], parent_block_hash=0, token_ids=[key] * BLOCK)
        for count, key in enumerate(order, start=1):
            apply_event(relay, type="BlockRemoved", block_hashes=[key])
            relay.check_integrity()
            assert relay.num_blocks == 200 - count
        apply_event(relay, **stored, block_hashes=[1], parent_block_hash=0, token_ids=[1] * BLOCK)
        apply_event(relay, type="BlockRemoved", block_hashes=[0])
        relay.check_integrity()
        assert held(relay) == []


def test_what_could_not_be_published_is_cleared_all_the_same() -> None:
    published: list[CacheEvent] = []
    fails = [True]

    def publish(events: Sequence[CacheEvent]) -> None:
        if fails[0]:
            raise RuntimeError("no room")
        published.extend(events)

    cache, foreign = RelayedCache(relay_of(), publish), ForeignCache(BLOCK)
    foreign.store(Prompt(TOKENS), 0, 2)
    cache.begin(0)
    with pytest.raises(RuntimeError):
        cache.apply(0, foreign.payload())
    with pytest.raises(RuntimeError):
        cache.clear()
    fails[0] = False
    cache.clear()
    assert published == [AllBlocksCleared()]
    cache.clear()
    assert published == [AllBlocksCleared()]
