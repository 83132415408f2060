from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app import hashing
from app.engine.cache.free_blocks import PROTECTED
from app.engine.cache.prefix_cache import BlockTable, PrefixCache
from app.events.schema import MEDIUM, AllBlocksCleared, BlockRemoved, BlockStored
from app.settings.engine import Eviction
from tests.support.engine import naive_cache
from tests.support.engine.event_replay import EventReplay
from tests.support.examples import examples

BLOCK = 4


def names(tokens: Sequence[int], salt: str | None = None) -> list[int]:
    """Wire hashes of the full blocks of `tokens`."""
    return [hashing.wire_hash(digest) for digest in hashing.chain(tokens, BLOCK, hashing.seed(salt))]


def opened(cache: PrefixCache, tokens: list[int], salt: str | None = None) -> BlockTable:
    """A table for `tokens` with the cached prefix and new blocks for the rest, nothing committed of those."""
    table = BlockTable(hashing.seed(salt))
    table.extend_digests(tokens, BLOCK)
    cache.open(table, cache.match(table.digests))
    assert cache.grow(table, -(-len(tokens) // BLOCK))
    return table


def fill(cache: PrefixCache, tokens: list[int], salt: str | None = None) -> BlockTable:
    """As `opened`, all computed."""
    table = opened(cache, tokens, salt)
    cache.commit(table, tokens, len(tokens))
    return table


def test_consecutive_new_blocks_are_one_event_with_parent_and_tokens() -> None:
    cache = PrefixCache(8, BLOCK)
    tokens = list(range(14))
    table = opened(cache, tokens)
    cache.commit(table, tokens, 5)
    cache.commit(table, tokens, 14)
    first, second, third = names(tokens)
    assert cache.drain_events() == [
        BlockStored([first], None, [0, 1, 2, 3], BLOCK, medium="GPU"),
        BlockStored([second, third], first, list(range(4, 12)), BLOCK, medium="GPU"),
    ]
    assert cache.drain_events() == []


def test_a_prefix_is_found_only_after_it_was_computed() -> None:
    cache = PrefixCache(8, BLOCK)
    tokens = list(range(12))
    table = opened(cache, tokens)
    digests = hashing.chain(tokens, BLOCK)
    assert cache.match(digests) == 0
    cache.commit(table, tokens, 8)
    assert cache.match(digests) == 2
    assert cache.match(hashing.chain([*range(4), 9, 9, 9, 9], BLOCK)) == 1


def test_salts_keep_blocks_apart() -> None:
    cache = PrefixCache(8, BLOCK)
    fill(cache, list(range(4)), "a")
    assert cache.match(hashing.chain(list(range(4)), BLOCK)) == 0
    assert cache.match(hashing.chain(list(range(4)), BLOCK, hashing.seed("b"))) == 0
    assert cache.match(hashing.chain(list(range(4)), BLOCK, hashing.seed("a"))) == 1
    (stored,) = cache.drain_events()
    assert isinstance(stored, BlockStored)
    assert stored.parent_block_hash is None


def test_a_released_request_is_evicted_from_its_tail() -> None:
    cache = PrefixCache(4, BLOCK)
    tokens = list(range(12))
    cache.close(fill(cache, tokens))
    cache.drain_events()
    other = opened(cache, [50] * 12)
    assert cache.drain_events() == [BlockRemoved([names(tokens)[2], names(tokens)[1]], "GPU")]
    assert cache.match(hashing.chain(tokens, BLOCK)) == 1
    cache.check_integrity([other])


def test_a_hit_makes_blocks_recently_used() -> None:
    cache = PrefixCache(4, BLOCK)
    old, new = list(range(8)), [9] * 8
    cache.close(fill(cache, old))
    cache.close(fill(cache, new))
    cache.close(opened(cache, old))
    cache.close(fill(cache, [7] * 8))
    assert cache.match(hashing.chain(old, BLOCK)) == 2
    assert cache.match(hashing.chain(new, BLOCK)) == 0


@pytest.mark.parametrize(("eviction", "hits"), [("lru", 0), ("segmented", 2)])
def test_segments_keep_what_was_used_again(eviction: Eviction, hits: int) -> None:
    cache = PrefixCache(8, BLOCK, eviction)
    conversation = list(range(8))
    cache.close(fill(cache, conversation))
    cache.close(opened(cache, conversation))
    for document in range(100, 200, 20):
        cache.close(fill(cache, list(range(document, document + 20))))
    assert cache.match(hashing.chain(conversation, BLOCK)) == hits


def test_only_a_quarter_is_kept_for_having_been_used_again() -> None:
    cache = PrefixCache(8, BLOCK, "segmented")
    conversations = [list(range(start, start + 8)) for start in (0, 10, 20)]
    for tokens in conversations:
        cache.close(fill(cache, tokens))
        cache.close(opened(cache, tokens))
    cache.close(fill(cache, list(range(100, 124))))
    assert [cache.match(hashing.chain(tokens, BLOCK)) for tokens in conversations] == [0, 0, 2]


def test_after_a_reset_nothing_is_kept_for_having_been_used_again() -> None:
    cache = PrefixCache(4, BLOCK, "segmented")
    cache.close(fill(cache, [1] * 4))
    cache.close(opened(cache, [1] * 4))
    cache.reset()
    cache.close(fill(cache, list(range(16))))
    assert cache.num_cached_blocks == 4
    cache.check_integrity([])


def test_blocks_without_content_are_reused_before_any_is_evicted() -> None:
    cache = PrefixCache(3, BLOCK)
    cache.close(fill(cache, list(range(8))))
    cache.drain_events()
    for _ in range(3):
        cache.close(opened(cache, [1, 2, 3]))
    assert cache.drain_events() == []


def test_what_several_sequences_evict_in_a_step_is_one_event() -> None:
    cache = PrefixCache(4, BLOCK)
    evicted = [names(tokens)[0] for tokens in ([1] * 4, [2] * 4, [3] * 4, [4] * 4)]
    for token in (1, 2, 3, 4):
        cache.close(fill(cache, [token] * 4))
    cache.drain_events()
    tables = [opened(cache, [token] * 4) for token in (5, 6, 7)]
    for token, table in zip((5, 6, 7), tables, strict=True):
        cache.commit(table, [token] * 4, 4)
    opened(cache, [8] * 4)
    removed, *stored, removed_later = cache.drain_events()
    assert removed == BlockRemoved(evicted[:3], MEDIUM)
    assert [type(event) for event in stored] == [BlockStored] * 3
    assert removed_later == BlockRemoved(evicted[3:], MEDIUM)


def test_growing_beyond_what_is_free_changes_nothing() -> None:
    cache = PrefixCache(3, BLOCK)
    table = fill(cache, list(range(8)))
    cache.drain_events()
    assert not cache.grow(table, 4)
    assert cache.num_free_blocks == 1
    assert cache.drain_events() == []
    cache.check_integrity([table])


def test_two_requests_that_compute_the_same_block_store_it_once() -> None:
    cache = PrefixCache(8, BLOCK)
    tokens = list(range(8))
    first, second = opened(cache, tokens), opened(cache, tokens)
    cache.commit(first, tokens, 8)
    cache.drain_events()
    cache.commit(second, tokens, 8)
    assert cache.drain_events() == []
    assert second.block_ids == first.block_ids
    assert cache.num_free_blocks == 6
    cache.check_integrity([first, second])


def test_a_child_never_outlives_its_parent() -> None:
    """Two requests computed the same head at once; the one that had it cached first leaves first."""
    cache = PrefixCache(6, BLOCK)
    head = [1, 2, 3, 4]
    first, second = opened(cache, head), opened(cache, [*head, 5, 6, 7, 8])
    cache.commit(first, head, 4)
    cache.commit(second, [*head, 5, 6, 7, 8], 8)
    cache.close(first)
    cache.drain_events()
    other = opened(cache, [9] * 16)
    assert cache.drain_events() == []
    cache.check_integrity([second, other])


def test_reset_forgets_everything_and_open_tables_go_on_unseen() -> None:
    cache = PrefixCache(8, BLOCK)
    tokens = list(range(12))
    table = opened(cache, tokens)
    cache.commit(table, tokens, 4)
    cache.drain_events()
    cache.reset()
    cache.commit(table, tokens, 12)
    assert cache.drain_events() == [AllBlocksCleared()]
    assert cache.cached_blocks() == []
    cache.check_integrity([table])
    again = fill(cache, tokens)
    assert not set(again.block_ids) & set(table.block_ids)
    cache.close(table)
    cache.check_integrity([again])
    assert [block.hash for block in cache.cached_blocks()] == names(tokens)


SALTS = (None, "tenant")
TOKENS = st.lists(st.integers(0, 1), max_size=5)


@dataclass
class CachedSequence:
    """A sequence as the cache knows it and as the naive one does."""

    table: BlockTable
    naive: naive_cache.Table
    salt: str | None
    tokens: list[int]
    num_computed: int = 0


class PrefixCacheMachine(RuleBasedStateMachine):
    """Any use of the cache: sequences wait, share prefixes, are computed in parts, grow, end; and resets.

    Contents are blocks of all zeros or all ones with odd tokens behind them, so prefixes are shared often.
    """

    @initialize(num_blocks=st.integers(1, 12), eviction=st.sampled_from(get_args(Eviction)))
    def start(self, num_blocks: int, eviction: Eviction) -> None:
        self.cache = PrefixCache(num_blocks, BLOCK, eviction)
        max_protected = int(PROTECTED * num_blocks) if eviction == "segmented" else None
        self.naive = naive_cache.NaiveCache(num_blocks, BLOCK, max_protected)
        self.replay = EventReplay(BLOCK, SALTS)
        self.waiting: list[CachedSequence] = []
        self.sequences: list[CachedSequence] = []

    @precondition(lambda self: len(self.waiting) < 4)
    @rule(kinds=TOKENS, rest=st.integers(0, BLOCK - 1), salt=st.sampled_from(SALTS))
    def arrive(self, kinds: list[int], rest: int, salt: str | None) -> None:
        tokens = [kind for kind in kinds for _ in range(BLOCK)] + [2] * rest
        table = BlockTable(hashing.seed(salt))
        table.extend_digests(tokens, BLOCK)
        self.waiting.append(CachedSequence(table, [], salt, tokens))

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 99))
    def admit(self, which: int) -> None:
        sequence = self.waiting[which % len(self.waiting)]
        table, tokens = sequence.table, sequence.tokens
        hits, needed = self.cache.count_hits(table, len(table.digests)), -(-len(tokens) // BLOCK)
        if self.cache.fits(table, hits, needed):
            self.waiting.remove(sequence)
            self.sequences.append(sequence)
            self.cache.open(table, hits)
            sequence.naive = self.naive.open(sequence.salt, tokens, hits)
            assert self.cache.grow(table, needed)
            assert self.naive.grow(sequence.naive, needed)
            sequence.num_computed = hits * BLOCK

    @precondition(lambda self: self.sequences)
    @rule(which=st.integers(0, 99), num_tokens=st.integers(1, 2 * BLOCK))
    def compute(self, which: int, num_tokens: int) -> None:
        sequence = self.sequences[which % len(self.sequences)]
        sequence.num_computed = min(len(sequence.tokens), sequence.num_computed + num_tokens)
        self.cache.commit(sequence.table, sequence.tokens, sequence.num_computed)
        self.naive.commit(sequence.naive, sequence.salt, sequence.tokens[: sequence.num_computed])

    @precondition(lambda self: self.sequences)
    @rule(which=st.integers(0, 99), token=st.integers(0, 2))
    def generate(self, which: int, token: int) -> None:
        """A computed sequence gets its next token, and a block for it if there is one."""
        sequence = self.sequences[which % len(self.sequences)]
        needed = len(sequence.tokens) // BLOCK + 1
        grown = self.cache.grow(sequence.table, needed)
        assert grown == self.naive.grow(sequence.naive, needed)
        if grown:
            sequence.tokens.append(token)
            self.compute(which, len(sequence.tokens))

    @precondition(lambda self: self.sequences)
    @rule(which=st.integers(0, 99))
    def go_over_to_what_is_cached(self, which: int) -> None:
        """As the scheduler does for a prompt that another one has computed meanwhile."""
        sequence = self.sequences[which % len(self.sequences)]
        if self.cache.is_findable(sequence.table):
            hits = self.cache.count_hits(sequence.table, len(sequence.table.digests))
            assert hits == self.naive.count_hits(sequence.salt, sequence.tokens)
            self.compute(which, max(0, hits * BLOCK - sequence.num_computed))

    @precondition(lambda self: self.sequences)
    @rule(which=st.integers(0, 99))
    def close(self, which: int) -> None:
        sequence = self.sequences.pop(which % len(self.sequences))
        self.cache.close(sequence.table)
        self.naive.close(sequence.naive)

    @rule()
    def reset(self) -> None:
        self.cache.reset()
        self.naive.reset()

    @invariant()
    def counts_contents_and_events_agree(self) -> None:
        self.cache.check_integrity(sequence.table for sequence in self.sequences)
        events = self.cache.drain_events()
        self.replay.apply(events)
        removed = [name for event in events if isinstance(event, BlockRemoved) for name in event.block_hashes]
        assert removed == [self.name_of(prefix) for prefix in self.naive.evicted]
        self.naive.evicted.clear()
        cached = self.cache.cached_blocks()
        assert {block.hash: block.parent_hash for block in cached} == self.replay.parent_of
        assert {block.hash for block in cached} == set(map(self.name_of, self.naive.cached))
        assert len(cached) == self.cache.num_cached_blocks
        assert self.cache.num_free_blocks == len(self.naive.in_order)
        for sequence in self.sequences:
            assert len(sequence.table.block_ids) == len(sequence.naive)

    @invariant()
    def what_waits_is_answered_truly(self) -> None:
        for sequence in self.waiting:
            table, salt, tokens = sequence.table, sequence.salt, sequence.tokens
            hits = self.naive.count_hits(salt, tokens)
            assert self.cache.match(table.digests) == self.replay.count_hits(tokens, salt) == hits
            for stop in (len(table.digests), len(table.digests) // 2):
                assert self.cache.count_hits(table, stop) == min(hits, stop)
            for needed in range(hits, self.cache.num_blocks + 1):
                expected = self.naive.fits(salt, tokens, hits, needed)
                assert self.cache.fits(table, hits, needed) == expected

    def name_of(self, prefix: naive_cache.Prefix) -> int:
        salt, tokens = prefix
        return names(tokens, salt)[-1]


TestPrefixCacheMachine = PrefixCacheMachine.TestCase
TestPrefixCacheMachine.settings = settings(max_examples=examples(100), stateful_step_count=40, deadline=None)
