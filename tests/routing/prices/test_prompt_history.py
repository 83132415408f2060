"""A prompt is found again by the one that goes on from it, and by no sibling."""

from __future__ import annotations

import pytest

from app.routing.prices.prompt_history import PromptHistory


def record(history: PromptHistory, block_hashes: list[int], now: float = 0.0) -> None:
    history.record(block_hashes, 3, now, history.find(block_hashes))


@pytest.mark.parametrize("num_blocks", [1, 2, 9, 10, 100, 3000])
@pytest.mark.parametrize("num_more", [1, 2, 50])
def test_a_prompt_that_goes_on_is_a_return(num_blocks: int, num_more: int) -> None:
    history = PromptHistory()
    hashes = list(range(num_blocks + num_more))
    record(history, hashes[:num_blocks], now=7.0)
    found = history.find(hashes)
    assert found is not None
    assert (found.seen_at, found.rank, found.num_blocks, found.is_return) == (7.0, 3, num_blocks, False)
    record(history, hashes)
    again = history.find([*hashes, -1])
    assert again is not None
    assert again.is_return
    assert len(history) == 1, "the return takes the place of what it returns from"


def test_the_same_prompt_again_is_a_return() -> None:
    history = PromptHistory()
    record(history, [1, 2, 3])
    assert history.find([1, 2, 3]) is not None


def test_a_sibling_and_a_cut_prompt_are_no_returns() -> None:
    history = PromptHistory()
    record(history, [*range(40), -1])
    assert history.find([*range(40), -2, -3]) is None
    assert history.find([*range(40)]) is None
    assert history.find([]) is None


def test_the_oldest_prompts_are_forgotten() -> None:
    history = PromptHistory(capacity=2)
    for first in (10, 20, 30):
        record(history, [first])
    assert len(history) == 2
    assert [history.find([first, 1]) is not None for first in (10, 20, 30)] == [False, True, True]
