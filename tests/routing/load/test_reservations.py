"""Reservations: each ends, in whatever order things happen, and late messages change nothing."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.events.schema import LoadStat
from app.routing.core import RoutingCore
from app.routing.load.request_history import MAX_REMEMBERED
from tests.support.routing.cores import TIMEOUT_S, assigned, new_core


@pytest.fixture
def core() -> RoutingCore:
    return new_core(dp_size=3)


def test_a_rank_can_only_acknowledge_its_own_reservation(core: RoutingCore) -> None:
    core.reservations.add(0, "a", 40, now=0.0)
    core.reservations.add(1, "a", 40, now=0.1)
    core.reservations.acknowledge(0, ["a", "never seen"])
    assert (core.load.waiting_tokens(0), core.load.waiting_tokens(1)) == (0, 40)


def test_reservations_end_at_their_deadline(core: RoutingCore) -> None:
    core.reservations.add(0, "a", 40, now=0.0)
    core.reservations.add(0, "b", 1, now=1.0)
    core.reservations.expire(TIMEOUT_S - 0.01)
    assert core.load.waiting_tokens(0) == 41
    core.reservations.expire(TIMEOUT_S)
    assert core.load.waiting_tokens(0) == 1
    core.reservations.expire(TIMEOUT_S + 1.0)
    assert core.load.waiting_tokens(0) == 0


def test_renewing_a_reservation_renews_its_deadline(core: RoutingCore) -> None:
    core.reservations.add(0, "a", 40, now=0.0)
    core.reservations.add(0, "b", 1, now=1.0)
    core.reservations.add(0, "a", 30, now=2.0)
    core.reservations.expire(TIMEOUT_S + 1.0)
    assert core.load.waiting_tokens(0) == 30


def test_what_another_router_reserved_waits_until_the_rank_has_it(core: RoutingCore) -> None:
    core.reservations.add_from_peer(0, "a", 40, now=0.0, choice_seq=0)
    assert (core.load.waiting_tokens(0), core.load.num_requests(0), assigned(core, 0)) == (40, 1, (0, 0))
    core.reservations.acknowledge(0, ["a"])
    assert (core.load.waiting_tokens(0), core.load.num_requests(0)) == (0, 0)
    core.reservations.add_from_peer(1, "b", 40, now=0.0, choice_seq=0)
    core.reservations.expire(TIMEOUT_S)
    assert len(core.reservations) == 0
    assert (core.reservations.num_from_peers, core.reservations.num_late_from_peers) == (2, 0)


@pytest.mark.parametrize("end", ["acknowledged", "released"])
def test_what_is_received_after_its_end_changes_nothing(core: RoutingCore, end: str) -> None:
    if end == "acknowledged":
        core.reservations.acknowledge(0, ["a"])
    else:
        core.reservations.release("a")
    core.reservations.add_from_peer(0, "a", 40, now=0.0, choice_seq=0)
    assert (core.load.waiting_tokens(0), len(core.reservations), assigned(core, 0)) == (0, 0, (0, 0))
    assert (core.reservations.num_from_peers, core.reservations.num_late_from_peers) == (1, 1)


def test_a_retry_that_is_received_replaces_the_first_choice_and_never_the_other_way_round(
    core: RoutingCore,
) -> None:
    core.reservations.add(0, "a", 40, now=0.0)
    core.reservations.add_from_peer(1, "a", 40, now=0.0, choice_seq=1)
    assert (core.load.waiting_tokens(0), core.load.waiting_tokens(1)) == (0, 40)
    core.reservations.add_from_peer(0, "a", 40, now=0.0, choice_seq=0)
    assert (core.load.waiting_tokens(0), core.load.waiting_tokens(1)) == (0, 40)
    core.reservations.add(2, "b", 5, now=0.0, choice_seq=1)
    core.reservations.add_from_peer(1, "b", 5, now=0.0, choice_seq=1)
    assert (core.load.waiting_tokens(2), core.load.waiting_tokens(1)) == (5, 40), (
        "our own of the same choice stays"
    )


@pytest.mark.parametrize("end", ["acknowledged", "expired", "released"])
def test_a_choice_that_was_overtaken_stays_overtaken(core: RoutingCore, end: str) -> None:
    core.reservations.add_from_peer(1, "a", 40, now=0.0, choice_seq=6)
    if end == "expired":
        core.reservations.expire(TIMEOUT_S)
    if end == "released":
        core.reservations.release("a")
    core.reservations.acknowledge(1, ["a"])
    core.reservations.add_from_peer(0, "a", 100, now=TIMEOUT_S, choice_seq=5)
    assert not core.reservations.supersede("a", 5)
    assert len(core.reservations) == 0


def test_a_rank_that_died_with_the_request_does_not_hide_its_retry(core: RoutingCore) -> None:
    core.reservations.acknowledge(0, ["a"])
    core.reservations.add_from_peer(1, "a", 40, now=0.0, choice_seq=1)
    assert core.load.waiting_tokens(1) == 40


def test_requests_are_not_remembered_for_ever(core: RoutingCore) -> None:
    for number in range(MAX_REMEMBERED + 1):
        core.reservations.acknowledge(0, [str(number)])
    core.reservations.add_from_peer(0, "1", 40, now=0.0, choice_seq=0)
    assert core.load.waiting_tokens(0) == 0
    core.reservations.add_from_peer(0, "0", 40, now=0.0, choice_seq=0)
    assert core.load.waiting_tokens(0) == 40


REQUESTS = st.sampled_from(["a", "b", "c", "d", "e"])
RANKS = st.integers(0, 2)


class NothingLeaks(RuleBasedStateMachine):
    """Any order of operations; once every deadline has passed, nothing is reserved anywhere."""

    @initialize()
    def start(self) -> None:
        self.core = new_core(dp_size=3)
        self.now = 0.0
        self.expected: dict[str, tuple[int, int, float]] = {}
        self.choice_seqs: dict[str, float] = {}
        self.acknowledged: dict[str, int] = {}

    @rule(rank=RANKS, held_tokens=st.integers(0, 1000))
    def report(self, rank: int, held_tokens: int) -> None:
        held = LoadStat(0, 0, held_tokens, 1000, rank, 0, held_tokens, 8, 0, 0)
        self.core.load.report(rank, held, self.now)

    @rule(rank=RANKS, request_id=REQUESTS, tokens=st.integers(1, 1000))
    def reserve(self, rank: int, request_id: str, tokens: int) -> None:
        self.core.reservations.add(rank, request_id, tokens, self.now)
        self.expected[request_id] = (rank, tokens, self.now + TIMEOUT_S)
        self.choice_seqs[request_id] = max(0, self.choice_seqs.get(request_id, 0))

    @rule(rank=RANKS, request_id=REQUESTS, tokens=st.integers(1, 1000), choice_seq=st.integers(0, 2))
    def add_peer_reservation(self, rank: int, request_id: str, tokens: int, choice_seq: int) -> None:
        if self.choice_seqs.get(request_id, -1) < choice_seq and self.acknowledged.get(request_id) != rank:
            self.expected[request_id] = (rank, tokens, self.now + TIMEOUT_S)
            self.choice_seqs[request_id] = choice_seq
        self.core.reservations.add_from_peer(rank, request_id, tokens, self.now, choice_seq)

    @rule(rank=RANKS, request_ids=st.lists(REQUESTS))
    def acknowledge(self, rank: int, request_ids: list[str]) -> None:
        self.core.reservations.acknowledge(rank, request_ids)
        self.acknowledged |= dict.fromkeys(request_ids, rank)
        self.keep(lambda key, held: held[0] != rank or key not in request_ids)

    @rule(request_id=REQUESTS)
    def release(self, request_id: str) -> None:
        self.core.reservations.release(request_id)
        self.choice_seqs[request_id] = inf
        self.expected.pop(request_id, None)

    @rule(request_id=REQUESTS)
    def withdraw(self, request_id: str) -> None:
        self.core.reservations.withdraw(request_id)
        self.expected.pop(request_id, None)

    @rule(rank=RANKS)
    def drop(self, rank: int) -> None:
        self.core.drop(rank)
        self.keep(lambda key, held: held[0] != rank)

    @rule(rank=RANKS)
    def join(self, rank: int) -> None:
        self.core.join(rank)
        self.keep(lambda key, held: held[0] != rank)

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.core.reservations.expire(self.now)
        self.keep(lambda key, held: held[2] > self.now)

    def keep(self, wanted: Callable[[str, tuple[int, int, float]], bool]) -> None:
        self.expected = {key: held for key, held in self.expected.items() if wanted(key, held)}

    @invariant()
    def sums_are_those_of_live_reservations(self) -> None:
        self.core.check_integrity()
        assert len(self.core.reservations) == len(self.expected)
        for rank in range(3):
            own = [tokens for holder, tokens, _ in self.expected.values() if holder == rank]
            assert (self.core.load.waiting_tokens(rank), self.core.load.num_requests(rank)) == (
                sum(own),
                len(own),
            )

    def teardown(self) -> None:
        self.core.reservations.expire(self.now + TIMEOUT_S)
        assert len(self.core.reservations) == 0
        assert [self.core.load.waiting_tokens(rank) for rank in range(3)] == [0, 0, 0]
        assert [self.core.load.num_requests(rank) for rank in range(3)] == [0, 0, 0]


TestNothingLeaks = NothingLeaks.TestCase
TestNothingLeaks.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
