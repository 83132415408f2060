"""PrefixIndex against a naive dict of counters, on random forests of chained hashes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.hashing import chain, wire_hash
from app.routing.index.block_forest import MIN_SEQUENCE
from app.routing.index.prefix_index import PrefixIndex
from tests.support.depths import depth_by_rank

RANKS = st.integers(0, 3)


def prompt_hashes(*tokens: int) -> list[int]:
    """Chained wire hashes of blocks of one token."""
    return [wire_hash(digest) for digest in chain(tokens, block_size=1)]


# Few tokens, so that prompts share prefixes and fork often; some long enough to be taken as one sequence.
PROMPTS = st.builds(
    lambda head, token, tail: prompt_hashes(*head, *[token] * tail),
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    st.integers(0, 1),
    st.one_of(st.integers(0, 3), st.integers(MIN_SEQUENCE, 2 * MIN_SEQUENCE)),
)


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

    @rule(rank=RANKS, prompt=PROMPTS, data=st.data())
    def store_one_by_one_in_any_order(self, rank: int, prompt: list[int], data: st.DataObject) -> None:
        for depth in data.draw(st.permutations(range(len(prompt)))):
            self.index.store(rank, [prompt[depth]], prompt[depth - 1] if depth else None)
        self.copies[rank].update(prompt)
        self.seen.append(prompt)

    @rule(rank=RANKS, data=st.data())
    def remove(self, rank: int, data: st.DataObject) -> None:
        prompt = data.draw(st.sampled_from(self.seen))
        self.drop(rank, data.draw(st.lists(st.sampled_from(prompt), max_size=2 * MIN_SEQUENCE)))

    @rule(rank=RANKS, data=st.data(), start=st.integers(0, 8), from_the_end=st.booleans())
    def remove_chain(self, rank: int, data: st.DataObject, start: int, from_the_end: bool) -> None:
        chain_of_blocks = data.draw(st.sampled_from(self.seen))[start:]
        chain_of_blocks = chain_of_blocks[: data.draw(st.integers(1, 3 * MIN_SEQUENCE))]
        self.drop(rank, chain_of_blocks[::-1] if from_the_end else chain_of_blocks)

    @rule(rank=RANKS, data=st.data())
    def evict_from_the_end(self, rank: int, data: st.DataObject) -> None:
        prompt = data.draw(st.sampled_from(self.seen))
        self.drop(rank, prompt[: -data.draw(st.integers(1, 3)) - 1 : -1])

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

    def drop(self, rank: int, victims: list[int]) -> None:
        self.index.remove(rank, victims)
        for victim in victims:
            if self.copies[rank][victim]:
                self.copies[rank][victim] -= 1

    def compare(self, prompt: list[int]) -> None:
        expected = {}
        for rank, copies in self.copies.items():
            run = next((depth for depth, key in enumerate(prompt) if not copies[key]), len(prompt))
            if run:
                expected[rank] = run
        assert depth_by_rank(self.index, prompt) == expected
        depths = [depth for depth, _ in self.index.match(prompt)]
        assert depths == sorted(set(expected.values()), reverse=True)


TestIndexAgainstNaive = IndexAgainstNaive.TestCase
TestIndexAgainstNaive.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


NAMES = st.integers(-3, 3 * MIN_SEQUENCE)
CHAINS = st.one_of(
    st.lists(NAMES, max_size=2 * MIN_SEQUENCE),
    st.builds(range, NAMES, NAMES).map(list),
    st.builds(range, NAMES, NAMES, st.just(-1)).map(list),
)


class IndexOfNonsense(RuleBasedStateMachine):
    """Chains that no engine makes: blocks twice in one, under several parents, their own ancestors."""

    @initialize()
    def start(self) -> None:
        self.index = PrefixIndex()
        self.copies: dict[int, Counter[int]] = {rank: Counter() for rank in range(4)}

    @rule(rank=RANKS, block_hashes=CHAINS, parent=st.none() | NAMES)
    def store(self, rank: int, block_hashes: list[int], parent: int | None) -> None:
        self.index.store(rank, block_hashes, parent)
        self.copies[rank].update(block_hashes)

    @rule(rank=RANKS, block_hashes=CHAINS)
    def remove(self, rank: int, block_hashes: list[int]) -> None:
        self.index.remove(rank, block_hashes)
        for block_hash in block_hashes:
            if self.copies[rank][block_hash]:
                self.copies[rank][block_hash] -= 1

    @rule(rank=RANKS)
    def clear(self, rank: int) -> None:
        self.index.clear(rank)
        self.copies[rank].clear()

    @invariant()
    def integrity(self) -> None:
        self.index.check_integrity()
        for rank, copies in self.copies.items():
            assert self.index.blocks_of(rank) == {key for key, count in copies.items() if count}


TestIndexOfNonsense = IndexOfNonsense.TestCase
TestIndexOfNonsense.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


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
    assert depth_by_rank(index, prompt) == {0: 4}
    index.remove(0, [prompt[0]])
    assert depth_by_rank(index, prompt) == {}
    index.store(0, [prompt[0]])
    assert depth_by_rank(index, prompt) == {0: 4}
    index.store(0, [prompt[4]], parent=prompt[3])
    assert depth_by_rank(index, prompt) == {0: 6}


def test_a_block_stored_twice_stays_until_removed_twice(index: PrefixIndex) -> None:
    prompt = prompt_hashes(1, 2)
    index.store(0, prompt)
    index.store(0, prompt)
    index.remove(0, prompt)
    assert depth_by_rank(index, prompt) == {0: 2}
    index.remove(0, prompt)
    assert depth_by_rank(index, prompt) == {}
    assert index.num_blocks == 0


def test_clearing_a_rank_leaves_the_others(index: PrefixIndex) -> None:
    prompt = prompt_hashes(1, 2, 3)
    index.store(0, prompt)
    index.store(1, prompt[:1])
    index.clear(0)
    assert depth_by_rank(index, prompt) == {1: 1}
    assert (index.num_blocks, index.num_blocks_of(0), index.num_blocks_of(1)) == (1, 0, 1)


def test_removing_what_is_not_held_changes_nothing(index: PrefixIndex) -> None:
    index.store(0, prompt_hashes(1))
    index.remove(0, prompt_hashes(2))
    index.remove(7, prompt_hashes(1))
    index.clear(7)
    assert index.num_blocks == 1
    index.check_integrity()


@pytest.mark.parametrize("step", [1, -1])
def test_removing_a_chain_leaves_the_branches_without_their_trunk(index: PrefixIndex, step: int) -> None:
    trunk = tuple(range(MIN_SEQUENCE))
    prompt, branch = prompt_hashes(*trunk, 1), prompt_hashes(*trunk, 2)
    index.store(0, prompt)
    index.store(0, branch[-1:], branch[-2])
    index.store(1, branch)
    index.remove(0, prompt[::step])
    index.check_integrity()
    assert depth_by_rank(index, branch) == {1: len(branch)}
    index.store(0, prompt)
    assert depth_by_rank(index, branch) == {0: len(branch), 1: len(branch)}


@pytest.mark.parametrize("step", [1, -1])
def test_removing_the_end_of_a_chain_leaves_its_start(index: PrefixIndex, step: int) -> None:
    prompt = prompt_hashes(*range(2 * MIN_SEQUENCE))
    index.store(0, prompt)
    index.remove(0, prompt[MIN_SEQUENCE:][::step])
    index.check_integrity()
    assert depth_by_rank(index, prompt) == {0: MIN_SEQUENCE}


def test_a_trunk_that_comes_and_goes_under_three_branches(index: PrefixIndex) -> None:
    trunk = prompt_hashes(0, 0)
    branches = [prompt_hashes(0, 0, token) for token in range(3)]
    for branch in branches:
        index.store(0, branch[-1:], trunk[-1])
        index.check_integrity()
        assert depth_by_rank(index, branch) == {}
    index.store(0, trunk)
    index.check_integrity()
    for branch in branches:
        assert depth_by_rank(index, branch) == {0: 3}
        index.remove(0, branch[-1:])
        index.check_integrity()
    index.store(0, branches[0][-1:], trunk[-1])
    index.remove(0, trunk)
    index.clear(0)
    index.check_integrity()


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("missing", [0, 4, -1])
def test_removing_a_chain_of_which_a_block_is_gone_already(
    index: PrefixIndex, missing: int, step: int
) -> None:
    prompt = prompt_hashes(*range(2 * MIN_SEQUENCE))
    index.store(0, prompt)
    index.remove(0, [prompt[missing]])
    index.remove(0, prompt[::step])
    assert index.num_blocks == 0
    index.check_integrity()


def test_a_block_that_is_its_own_ancestor_is_removed_once(index: PrefixIndex) -> None:
    index.store(0, [1], parent=1)
    index.remove(0, [1] * MIN_SEQUENCE)
    ring = list(range(MIN_SEQUENCE))
    index.store(0, ring, parent=ring[-1])
    index.remove(0, ring + ring)
    assert index.num_blocks == 0
    index.check_integrity()


@pytest.mark.parametrize("length", [1, 2 * MIN_SEQUENCE])
def test_many_ranks_share_blocks(index: PrefixIndex, length: int) -> None:
    prompt = prompt_hashes(*range(length))
    for rank in (0, 9, 70, 1023):
        index.store(rank, prompt)
    index.store(9, prompt_hashes(*range(length), 1)[-1:], prompt[-1])
    index.remove(70, prompt[::-1])
    index.clear(0)
    assert index.match(prompt) == [(length, 1 << 1023 | 1 << 9)]
    index.check_integrity()


def test_memory_is_freed_with_the_last_holder(index: PrefixIndex) -> None:
    for turn in range(50):
        prompt = prompt_hashes(turn, *range(20))
        index.store(turn % 3, prompt)
        index.remove(turn % 3, prompt[::-1])
    assert index.num_blocks == 0
    assert index.blocks_of(0) == set()
    index.check_integrity()


def test_a_block_has_as_many_children_as_follow_it_in_the_ranks_cache() -> None:
    index = PrefixIndex()
    index.store(0, [1, 2, 3])
    index.store(0, [4], parent=2)
    index.store(1, [1, 2])
    assert [index.num_children(0, block) for block in (1, 2, 3, 4, 5)] == [1, 2, 0, 0, 0]
    assert [index.num_children(1, 2), index.num_children(2, 1)] == [0, 0]
    index.remove(0, [4])
    assert index.num_children(0, 2) == 1


def test_removed_blocks_are_counted_until_the_rank_is_cleared() -> None:
    index = PrefixIndex()
    index.store(0, list(range(1, 21)))
    index.remove(0, [20, 19])
    index.remove(0, list(range(18, 8, -1)))
    index.remove(0, [99])
    assert (index.num_removed_of(0), index.num_removed_of(1)) == (12, 0)
    index.clear(0)
    assert index.num_removed_of(0) == 0
