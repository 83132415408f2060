"""PrefixIndex against a naive dict of counters, on random forests of chained hashes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.hashing import chain, wire_hash
from app.routing.index import PrefixIndex, ranks_in

RANKS = st.integers(0, 3)


def prompt_hashes(*tokens: int) -> list[int]:
    """Chained wire hashes of blocks of one token."""
    return [wire_hash(digest) for digest in chain(tokens, block_size=1)]


# Few tokens, so that prompts share prefixes and fork often.
PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(lambda tokens: prompt_hashes(*tokens))


class IndexAgainstNaive(RuleBasedStateMachine):
    """Any order of stores, removals (of interior blocks too) and clears, compared after every step."""

    @initialize()
    def start(self) -> None:
        self.index = PrefixIndex()
        self.copies: dict[int, Counter[int]] = {rank: Counter() for rank in range(4)}
        self.seen: list[list[int]] = [prompt_hashes(0)]

    @rule(rank=RANKS, prompt=PROMPTS, start=st.integers(0, 8))
    def store(self, rank: int, prompt: list[int], start: int) -> None:
        start = min(start, len(prompt) - 1)
        self.index.store(rank, prompt[start:], prompt[start - 1] if start else None)
        self.copies[rank].update(prompt[start:])
        self.seen.append(prompt)

    @rule(rank=RANKS, prompt=PROMPTS)
    def load_snapshot(self, rank: int, prompt: list[int]) -> None:
        self.index.clear(rank)
        self.index.store_unlinked(rank, prompt)
        self.copies[rank] = Counter(prompt)
        self.seen.append(prompt)

    @rule(rank=RANKS, data=st.data())
    def remove(self, rank: int, data: st.DataObject) -> None:
        prompt = data.draw(st.sampled_from(self.seen))
        victims = data.draw(st.lists(st.sampled_from(prompt), max_size=4))
        self.index.remove(rank, victims)
        for victim in victims:
            if self.copies[rank][victim]:
                self.copies[rank][victim] -= 1

    @rule(rank=RANKS, data=st.data())
    def evict_from_the_end(self, rank: int, data: st.DataObject) -> None:
        prompt = data.draw(st.sampled_from(self.seen))
        victims = prompt[: -data.draw(st.integers(1, 3)) - 1 : -1]
        self.index.remove(rank, victims)
        for victim in victims:
            if self.copies[rank][victim]:
                self.copies[rank][victim] -= 1

    @rule(rank=RANKS)
    def clear(self, rank: int) -> None:
        self.index.clear(rank)
        self.copies[rank].clear()

    @rule(prompt=PROMPTS)
    def match_unseen(self, prompt: list[int]) -> None:
        self.compare(prompt)

    @invariant()
    def integrity(self) -> None:
        self.index.check_integrity()
        held = {rank: {key for key, count in copies.items() if count} for rank, copies in self.copies.items()}
        assert {rank: self.index.blocks_of(rank) for rank in held} == held
        assert self.index.num_blocks == len(set().union(*held.values()))

    @invariant()
    def matches(self) -> None:
        for prompt in self.seen[-3:]:
            self.compare(prompt)

    def compare(self, prompt: list[int]) -> None:
        expected = {}
        for rank, copies in self.copies.items():
            run = next((depth for depth, key in enumerate(prompt) if not copies[key]), len(prompt))
            if run:
                expected[rank] = run
        assert self.index.depth_by_rank(prompt) == expected
        depths = [depth for depth, _ in self.index.match(prompt)]
        assert depths == sorted(set(expected.values()), reverse=True)


TestIndexAgainstNaive = IndexAgainstNaive.TestCase
TestIndexAgainstNaive.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@pytest.fixture
def index() -> PrefixIndex:
    return PrefixIndex()


def test_tiers_are_deepest_first_and_disjoint(index: PrefixIndex) -> None:
    prompt = prompt_hashes(*range(10))
    index.store(0, prompt[:3])
    index.store(1, prompt)
    index.store(5, prompt[:3])
    assert index.match(prompt) == [(10, 0b10), (3, 0b100001)]
    assert index.match(prompt[:2]) == [(2, 0b100011)]


def test_nothing_matches_an_empty_prompt_or_another_root(index: PrefixIndex) -> None:
    index.store(0, prompt_hashes(1, 2))
    assert index.match([]) == []
    assert index.match(prompt_hashes(2, 2)) == []


def test_block_without_its_predecessor_is_worth_nothing_until_that_returns(index: PrefixIndex) -> None:
    prompt = prompt_hashes(*range(6))
    index.store(0, prompt)
    index.remove(0, [prompt[4]])
    assert index.depth_by_rank(prompt) == {0: 4}
    index.remove(0, [prompt[0]])
    assert index.depth_by_rank(prompt) == {}
    index.store(0, [prompt[0]])
    assert index.depth_by_rank(prompt) == {0: 4}
    index.store(0, [prompt[4]], parent=prompt[3])
    assert index.depth_by_rank(prompt) == {0: 6}


def test_a_block_stored_twice_stays_until_removed_twice(index: PrefixIndex) -> None:
    prompt = prompt_hashes(1, 2)
    index.store(0, prompt)
    index.store(0, prompt)
    index.remove(0, prompt)
    assert index.depth_by_rank(prompt) == {0: 2}
    index.remove(0, prompt)
    assert index.depth_by_rank(prompt) == {}
    assert index.num_blocks == 0


def test_clearing_a_rank_leaves_the_others(index: PrefixIndex) -> None:
    prompt = prompt_hashes(1, 2, 3)
    index.store(0, prompt)
    index.store(1, prompt[:1])
    index.clear(0)
    assert index.depth_by_rank(prompt) == {1: 1}
    assert (index.num_blocks, index.num_blocks_of(0), index.num_blocks_of(1)) == (1, 0, 1)


def test_removing_what_is_not_held_changes_nothing(index: PrefixIndex) -> None:
    index.store(0, prompt_hashes(1))
    index.remove(0, prompt_hashes(2))
    index.remove(7, prompt_hashes(1))
    index.clear(7)
    assert index.num_blocks == 1
    index.check_integrity()


def test_memory_is_freed_with_the_last_holder(index: PrefixIndex) -> None:
    for turn in range(50):
        prompt = prompt_hashes(turn, *range(20))
        index.store(turn % 3, prompt)
        index.remove(turn % 3, reversed(prompt))
    assert index.num_blocks == 0
    assert index.blocks_of(0) == set()
    index.check_integrity()


@pytest.mark.parametrize("bits", [0, 1, 0b1010, 1 << 1023 | 1])
def test_ranks_of_a_bit_set(bits: int) -> None:
    ranks = list(ranks_in(bits))
    assert ranks == sorted(ranks)
    assert sum(1 << rank for rank in ranks) == bits
