from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.cache.block_pool import BlockPool


def test_free_blocks_are_taken_in_order_of_release() -> None:
    pool = BlockPool(3)
    taken = [pool.take() for _ in range(3)]
    assert pool.num_free == 0
    for block in (taken[1], taken[0], taken[2]):
        pool.release(block)
    assert [pool.take() for _ in range(3)] == [taken[1], taken[0], taken[2]]


def test_a_block_released_to_be_taken_first_is() -> None:
    pool = BlockPool(3)
    block = pool.take()
    pool.release(block, take_first=True)
    assert pool.take() == block


def test_a_block_is_free_when_its_last_holder_leaves() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.hold(block)
    pool.release(block)
    assert not pool.is_free(block)
    pool.release(block)
    assert pool.is_free(block)


def test_a_free_block_can_be_held_again_out_of_turn() -> None:
    pool = BlockPool(3)
    pool.hold(1)
    assert [pool.take(), pool.take()] == [0, 2]
    pool.check_integrity([0, 1, 2])


def test_releasing_a_free_block_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError, match="block 0 has no holder"):
        BlockPool(1).release(0)


def test_check_integrity_sees_a_forgotten_holder() -> None:
    pool = BlockPool(2)
    pool.take()
    with pytest.raises(AssertionError, match="block 0: 1 counted, 0 holders"):
        pool.check_integrity([])


def test_with_segments_a_block_that_was_held_again_is_taken_later() -> None:
    pool = BlockPool(8, "segmented")
    first, second = pool.take(), pool.take()
    pool.hold(first)
    for block in (first, first, second):
        pool.release(block)
    assert [pool.take() for _ in range(8)] == [2, 3, 4, 5, 6, 7, second, first]
    pool.check_integrity(range(8))


def test_with_segments_only_a_quarter_is_taken_later() -> None:
    pool = BlockPool(8, "segmented")
    for block in (5, 3, 4):
        pool.hold(block)
        pool.release(block)
    pool.check_integrity([])
    # 5 was the least recently used of three, so it is as one that was used once just now.
    assert [pool.take() for _ in range(8)] == [0, 1, 2, 6, 7, 5, 3, 4]


@given(st.lists(st.tuples(st.sampled_from(["take", "hold", "release", "release first"]), st.integers(0, 4))))
def test_random_calls_agree_with_a_list(calls: list[tuple[str, int]]) -> None:
    pool = BlockPool(5)
    free = list(range(5))
    held: list[int] = []
    for call, number in calls:
        if call == "take" and free:
            held.append(free.pop(0))
            assert pool.take() == held[-1]
        elif call == "hold":
            free = [block for block in free if block != number]
            held.append(number)
            pool.hold(number)
        elif call.startswith("release") and held:
            block = held.pop(number % len(held))
            pool.release(block, take_first=call == "release first")
            if block not in held:
                free.insert(0 if call == "release first" else len(free), block)
        assert pool.num_free == len(free)
        assert [pool.is_free(block) for block in range(5)] == [block in free for block in range(5)]
        pool.check_integrity(held)
