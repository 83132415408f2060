"""A router's book of misses: details of reasons, what is counted, and bounded memory."""

from __future__ import annotations

from itertools import count

from app.routing.decisions.decision import Decision, Prompt
from app.routing.decisions.decision_log import Outcome
from app.routing.misses.miss import Miss, settled
from app.routing.misses.miss_book import MissBook
from tests.support.routing.cores import load_stat, new_core, new_prompt, set_routable

BLOCK = 4
TOKENS = list(range(100, 122))
"""Five blocks and a tail of two."""


class Desk:
    """A core of three ranks, and the book of its misses."""

    def __init__(self, capacity: int = 1_000) -> None:
        self.core = new_core(dp_size=3)
        self.now = 0.0
        self.book = MissBook(self.core.index, capacity, 10, lambda: self.now)
        self._ids = map(str, count())

    def choose(self, tokens: list[int], pinned: int | None = None) -> tuple[Prompt, Decision]:
        prompt = new_prompt(next(self._ids), tokens, BLOCK)
        decision = self.core.choose(prompt, self.now, pinned_rank=pinned)
        self.book.find(prompt, decision)
        return prompt, decision

    def misses(self, tokens: list[int], pinned: int | None = None) -> list[Miss]:
        prompt, _ = self.choose(tokens, pinned)
        receipt = self.book.receipt((prompt.request_id, 0))
        assert receipt is not None
        return [Miss(**each) for each in receipt["runs"]]

    def serve(self, tokens: list[int], rank: int) -> Prompt:
        prompt, decision = self.choose(tokens, rank)
        held = decision.cached_tokens // BLOCK
        parent = prompt.block_hashes[held - 1] if held else None
        self.core.index.store(rank, prompt.block_hashes[held:], parent)
        self.book.record_outcome(Outcome(prompt.request_id, rank, "answering", cached_tokens=held * BLOCK))
        return prompt


def test_a_block_that_another_rank_holds_says_how_busy_that_is() -> None:
    desk = Desk()
    desk.serve(TOKENS, 1)
    desk.core.load.report(1, load_stat(rank=1, running=1, waiting=2, waiting_tokens=70))
    elsewhere, tail = desk.misses(TOKENS, pinned=0)
    # The request that was just served is still reserved there.
    assert elsewhere == Miss("elsewhere", 0, 20, rank=1, waiting_tokens=92, num_requests=4)
    assert tail == Miss("tail", 20, 2)


def test_a_rank_that_can_take_nothing_now_holds_blocks_elsewhere() -> None:
    desk = Desk()
    desk.serve(TOKENS, 1)
    desk.core.set_unavailable(1, "it stands still")
    assert desk.misses(TOKENS, pinned=0)[0] == Miss("elsewhere", 0, 20, rank=1)


def test_an_evicted_block_says_where_when_and_how_old_it_was() -> None:
    desk = Desk()
    prompt = desk.serve(TOKENS, 1)
    desk.now = 50.0
    desk.core.index.remove(1, prompt.block_hashes[3:][::-1])
    desk.now = 57.0
    assert desk.misses(TOKENS, pinned=1) == [
        Miss("evicted", 12, 8, rank=1, ago_s=7.0, age_s=50.0),
        Miss("tail", 20, 2),
    ]


def test_a_rank_that_died_lost_its_blocks() -> None:
    desk = Desk()
    desk.serve(TOKENS, 1)
    desk.core.drop(1)
    desk.now = 3.0
    assert desk.misses(TOKENS)[0] == Miss("lost", 0, 20, rank=1, ago_s=3.0, age_s=0.0)


def test_a_request_on_its_way_is_computing_until_its_first_token_or_its_end() -> None:
    desk = Desk()
    prompt, decision = desk.choose(TOKENS, 2)
    assert desk.misses([*TOKENS[:12], *range(12)], pinned=0)[:2] == [
        Miss("computing", 0, 12, rank=2),
        Miss("diverged", 12, 4),
    ]
    desk.book.record_outcome(Outcome(prompt.request_id, decision.rank, "died"))
    assert "computing" not in {each.reason for each in desk.misses(TOKENS, pinned=1)[3:]}


def test_a_rank_that_isnt_exact_has_unknown_blocks() -> None:
    desk = Desk()
    set_routable(desk.core, {0: "stale", 1: "partial"})
    assert [each.reason for each in desk.misses(TOKENS, pinned=0)] == ["unknown", "tail"]
    assert [each.reason for each in desk.misses(TOKENS, pinned=1)] == ["unknown", "tail"]


def test_a_block_behind_one_that_was_evicted_shares_its_reason() -> None:
    desk = Desk()
    prompt = desk.serve(TOKENS, 1)
    desk.core.index.remove(1, prompt.block_hashes[1:2])
    found = desk.misses(TOKENS, pinned=1)
    assert [(each.reason, each.start, each.num_tokens) for each in found] == [
        ("evicted", 4, 16),
        ("tail", 20, 2),
    ]


def test_the_block_of_the_last_token_is_the_tail() -> None:
    desk = Desk()
    desk.serve(TOKENS[:20], 1)
    assert desk.misses(TOKENS[:20], pinned=1) == [Miss("tail", 16, 4)]
    assert desk.misses([5], pinned=1) == [Miss("tail", 0, 1)]


def test_what_was_cached_in_the_end_counts() -> None:
    misses = [Miss("computing", 8, 8, rank=1), Miss("new", 16, 4), Miss("tail", 20, 2)]
    assert settled(misses, 22, 8) == misses
    assert settled(misses, 22, 12) == [Miss("computing", 12, 4, rank=1), *misses[1:]]
    assert settled(misses, 22, 16) == misses[1:]
    assert settled(misses, 22, 22) == []
    assert settled(misses, 22, 4) == [Miss("unknown", 4, 4), *misses]
    assert all(sum(e.num_tokens for e in settled(misses, 22, n)) == 22 - n for n in range(23))


def test_a_request_is_counted_once_when_its_content_and_its_first_token_are_known() -> None:
    desk = Desk()
    first, _ = desk.choose(TOKENS)
    second, _ = desk.choose(TOKENS)
    desk.book.note((first.request_id, 0), "t1", None)
    assert desk.book.tally.requests == 0
    answering = Outcome(first.request_id, 0, "answering", cached_tokens=0)
    for outcome in (answering, answering, Outcome(first.request_id, 0, "finished", cached_tokens=0)):
        desk.book.record_outcome(outcome)
    # The other way round; and its rank had more than was expected, as the first had computed it by then.
    desk.book.record_outcome(Outcome(second.request_id, 0, "answering", cached_tokens=16))
    desk.book.note((second.request_id, 0), "t2", None)
    table = desk.book.table("m")
    assert (table["requests"], table["prompt_tokens"]) == (2, 44)
    assert {reason: tokens for reason, tokens in table["tokens"].items() if tokens} == {
        "new": 20,
        "computing": 4,
        "tail": 4,
    }
    assert [(row["tenant"], row["reason"], row["tokens"]) for row in table["rows"]] == [
        ("t1", "new", 20),
        ("t2", "computing", 4),
        ("t1", "tail", 2),
        ("t2", "tail", 2),
    ]


def test_memory_stays_within_its_capacity() -> None:
    desk = Desk(capacity=100)
    for number in range(200):
        prompt = desk.serve([number, *range(60)], number % 3)
        if number % 2:
            desk.core.index.remove(number % 3, prompt.block_hashes[::-1])
        memory = desk.book.table("m")["memory"]
        assert memory["prompt_blocks"] <= 100
        assert memory["dropped_blocks"] <= 100
        assert memory["capacity"] == 100
    # The last ones are remembered.
    assert desk.misses([199, *range(60)], pinned=0)[0].reason == "evicted"


def test_a_rank_that_loses_more_than_can_be_remembered_leaves_the_first_blocks() -> None:
    desk = Desk(capacity=10)
    tokens = list(range(80))
    desk.serve(tokens, 1)
    desk.core.drop(1)
    found = desk.misses(tokens, pinned=0)
    assert [(each.reason, each.num_tokens) for each in found] == [("lost", 40), ("unknown", 36), ("tail", 4)]


def test_another_routers_prompts_are_known_too() -> None:
    desk = Desk()
    prompt = new_prompt("theirs", TOKENS, BLOCK)
    desk.book.learn(("theirs", 7), prompt.block_hashes, 2, None, BLOCK)
    assert desk.misses(TOKENS, pinned=0)[0] == Miss("computing", 0, 20, rank=2)
    desk.book.record_outcome(Outcome("theirs", 2, "answering", choice_seq=7, cached_tokens=0))
    found = desk.misses([*TOKENS[:8], *range(14)], pinned=0)
    assert [each.reason for each in found] == ["computing", "diverged", "new", "tail"]
