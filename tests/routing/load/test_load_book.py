"""LoadBook: what is waiting where, measured rates, and that no reservation outlives its end."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.config import RoutingConfig
from app.events.schema import LoadStat
from app.routing.load.load_book import LoadBook
from app.routing.load.prefill_rate import MIN_TOKENS, WINDOW_TOKENS, PrefillRate
from app.routing.load.prefill_rates import RATE_NOISE
from app.routing.load.request_history import MAX_REMEMBERED
from app.routing.membership import RoutableRanks
from app.routing.rank_view import COUNTS

TIMEOUT_S = 5.0
CONFIG = RoutingConfig(reservation_timeout_s=TIMEOUT_S, initial_prefill_tokens_per_s=1000.0)


def prefill_rates(book: LoadBook, ranks: Iterable[int]) -> dict[int, float]:
    alive = RoutableRanks(dict.fromkeys(ranks, "exact"))
    rates = np.broadcast_to(np.asarray(book.columns(alive)[1]), len(alive))
    return dict(zip(alive, rates.tolist(), strict=True))


def stat(
    *, running: int = 0, waiting: int = 0, waiting_tokens: int = 0, prefilled: int = 0, busy_us: int = 0
) -> LoadStat:
    return LoadStat(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_tokens=0,
        max_total_num_tokens=1000,
        dp_rank=0,
        num_waiting_uncached_tokens=waiting_tokens,
        num_total_tokens=0,
        max_running_requests=8,
        total_prefill_uncached_tokens=prefilled,
        total_prefill_busy_us=busy_us,
    )


@pytest.fixture
def book() -> LoadBook:
    return LoadBook(CONFIG)


def test_waiting_is_what_was_reported_plus_what_was_reserved_since(book: LoadBook) -> None:
    book.report(0, stat(running=2, waiting=1, waiting_tokens=100))
    book.reserve(0, "a", 40, now=0.0)
    assert (book.waiting_tokens(0), book.num_requests(0)) == (140, 4)
    book.report(0, stat(running=2, waiting=2, waiting_tokens=140))
    book.acknowledge(0, ["a"])
    assert (book.waiting_tokens(0), book.num_requests(0)) == (140, 4)


def test_a_rank_can_only_acknowledge_its_own_reservation(book: LoadBook) -> None:
    book.reserve(0, "a", 40, now=0.0)
    book.reserve(1, "a", 40, now=0.1)
    book.acknowledge(0, ["a", "never seen"])
    assert (book.waiting_tokens(0), book.waiting_tokens(1)) == (0, 40)


def test_columns_say_of_many_ranks_what_the_book_says_of_each(book: LoadBook) -> None:
    book.report(3, stat(running=2, waiting=1, waiting_tokens=100, prefilled=4000, busy_us=1_000_000))
    book.reserve(100, "a", 40, now=0.0)
    book.reserve(3, "b", 7, now=0.0)
    ranks = [3, 5, 100, 1000]
    alive = RoutableRanks(dict.fromkeys(ranks, "exact"))
    counts, rate = book.columns(alive)
    columns = dict(zip(COUNTS, counts.tolist(), strict=True))
    assert columns["waiting_tokens"] == [book.waiting_tokens(rank) for rank in ranks] == [107, 0, 40, 0]
    assert columns["num_requests"] == [book.num_requests(rank) for rank in ranks] == [4, 0, 1, 0]
    assert columns["assigned_tokens"] == [7, 0, 40, 0]
    assert columns["assigned_requests"] == [1, 0, 1, 0]
    assert rate == 4000.0
    book.release("a")
    book.drop(3)
    assert counts[0].tolist() == [107, 0, 40, 0], "what was handed out stays"
    counts, rate = book.columns(alive)
    assert counts[0].tolist() == [0, 0, 0, 0]
    assert rate == 1000.0


def test_reservations_end_at_their_deadline(book: LoadBook) -> None:
    book.reserve(0, "a", 40, now=0.0)
    book.reserve(0, "b", 1, now=1.0)
    book.expire(TIMEOUT_S - 0.01)
    assert book.waiting_tokens(0) == 41
    book.expire(TIMEOUT_S)
    assert book.waiting_tokens(0) == 1
    book.expire(TIMEOUT_S + 1.0)
    assert book.waiting_tokens(0) == 0


def test_renewing_a_reservation_renews_its_deadline(book: LoadBook) -> None:
    book.reserve(0, "a", 40, now=0.0)
    book.reserve(0, "b", 1, now=1.0)
    book.reserve(0, "a", 30, now=2.0)
    book.expire(TIMEOUT_S + 1.0)
    assert book.waiting_tokens(0) == 30


def test_dropping_a_rank_forgets_all_of_it(book: LoadBook) -> None:
    book.report(0, stat(waiting_tokens=7, prefilled=1000, busy_us=500_000))
    book.reserve(0, "a", 40, now=0.0)
    book.reserve(1, "b", 5, now=0.0)
    book.drop(0)
    assert (book.waiting_tokens(0), book.num_requests(0), book.num_reservations) == (0, 0, 1)
    assert book.last_report(0) is None
    assert prefill_rates(book, [0]) == {0: 1000.0}
    book.release("a")
    book.check_integrity()


def test_what_another_router_reserved_waits_until_the_rank_has_it(book: LoadBook) -> None:
    book.add_peer_reservation(0, "a", 40, now=0.0, choice_seq=0)
    assert (book.waiting_tokens(0), book.num_requests(0), book.assigned(0)) == (40, 1, (0, 0))
    book.acknowledge(0, ["a"])
    assert (book.waiting_tokens(0), book.num_requests(0)) == (0, 0)
    book.add_peer_reservation(1, "b", 40, now=0.0, choice_seq=0)
    book.expire(TIMEOUT_S)
    assert book.num_reservations == 0
    assert (book.num_peer_reservations, book.num_late_peer_reservations) == (2, 0)


@pytest.mark.parametrize("end", ["acknowledged", "released"])
def test_what_is_heard_after_its_end_changes_nothing(book: LoadBook, end: str) -> None:
    if end == "acknowledged":
        book.acknowledge(0, ["a"])
    else:
        book.release("a")
    book.add_peer_reservation(0, "a", 40, now=0.0, choice_seq=0)
    assert (book.waiting_tokens(0), book.num_reservations, book.assigned(0)) == (0, 0, (0, 0))
    assert (book.num_peer_reservations, book.num_late_peer_reservations) == (1, 1)


def test_a_retry_that_is_heard_replaces_the_first_ask_and_never_the_other_way_round(
    book: LoadBook,
) -> None:
    book.reserve(0, "a", 40, now=0.0)
    book.add_peer_reservation(1, "a", 40, now=0.0, choice_seq=1)
    assert (book.waiting_tokens(0), book.waiting_tokens(1)) == (0, 40)
    book.add_peer_reservation(0, "a", 40, now=0.0, choice_seq=0)
    assert (book.waiting_tokens(0), book.waiting_tokens(1)) == (0, 40)
    book.reserve(2, "b", 5, now=0.0, choice_seq=1)
    book.add_peer_reservation(1, "b", 5, now=0.0, choice_seq=1)
    assert (book.waiting_tokens(2), book.waiting_tokens(1)) == (5, 40), "our own of the same choice stays"


@pytest.mark.parametrize("end", ["acknowledged", "expired", "released"])
def test_an_ask_that_was_overtaken_stays_overtaken(book: LoadBook, end: str) -> None:
    book.add_peer_reservation(1, "a", 40, now=0.0, choice_seq=6)
    if end == "expired":
        book.expire(TIMEOUT_S)
    if end == "released":
        book.release("a")
    book.acknowledge(1, ["a"])
    book.add_peer_reservation(0, "a", 100, now=TIMEOUT_S, choice_seq=5)
    assert not book.supersede("a", 5)
    assert book.num_reservations == 0


def test_a_rank_that_died_with_the_request_does_not_hide_its_retry(book: LoadBook) -> None:
    book.acknowledge(0, ["a"])
    book.add_peer_reservation(1, "a", 40, now=0.0, choice_seq=1)
    assert book.waiting_tokens(1) == 40


def test_requests_are_not_remembered_for_ever(book: LoadBook) -> None:
    for number in range(MAX_REMEMBERED + 1):
        book.acknowledge(0, [str(number)])
    book.add_peer_reservation(0, "1", 40, now=0.0, choice_seq=0)
    assert book.waiting_tokens(0) == 0
    book.add_peer_reservation(0, "0", 40, now=0.0, choice_seq=0)
    assert book.waiting_tokens(0) == 40


def test_a_new_rank_does_not_have_to_catch_up_with_history(book: LoadBook) -> None:
    for turn in range(10):
        book.reserve(turn % 2, f"r{turn}", 100, now=0.0)
    book.join(0)
    assert book.assigned(0) == book.assigned(1) == (500, 5)


def test_rates_are_the_initial_one_until_measured_then_the_typical_one(book: LoadBook) -> None:
    assert prefill_rates(book, [0, 1]) == {0: 1000.0, 1: 1000.0}
    book.report(0, stat(prefilled=4000, busy_us=1_000_000))
    assert prefill_rates(book, [0, 1]) == {0: 4000.0, 1: 4000.0}


def test_noise_between_equal_ranks_is_no_difference_but_a_slow_rank_is(book: LoadBook) -> None:
    for rank, tokens in enumerate([1000, 1000 * (1 + RATE_NOISE / 2), 1000 * (1 - RATE_NOISE / 2), 300]):
        book.report(rank, stat(prefilled=int(tokens), busy_us=1_000_000))
    book.report(4, stat(prefilled=1000, busy_us=1_000_000))
    assert prefill_rates(book, range(5)) == {0: 1000.0, 1: 1000.0, 2: 1000.0, 3: 300.0, 4: 1000.0}


def test_rate_follows_the_recent_past() -> None:
    rate = PrefillRate()
    tokens = busy_us = 0
    for speed in (1000, 4000):
        while tokens < 2 * WINDOW_TOKENS * speed // 1000:
            tokens += 100
            busy_us += 100 * 1_000_000 // speed
            rate.observe(tokens, busy_us)
    assert rate.tokens_per_s == pytest.approx(4000.0, rel=1e-3)


def test_a_few_tokens_are_no_measurement() -> None:
    rate = PrefillRate()
    rate.observe(MIN_TOKENS - 1, 1_000_000)
    assert rate.tokens_per_s is None
    rate.observe(MIN_TOKENS, 1_000_000)
    assert rate.tokens_per_s == pytest.approx(MIN_TOKENS)


def test_tokens_without_time_are_no_measurement() -> None:
    rate = PrefillRate()
    rate.observe(10_000, 0)
    assert rate.tokens_per_s is None


def test_counters_that_went_back_start_a_new_measurement() -> None:
    rate = PrefillRate()
    rate.observe(50_000, 1_000_000)
    rate.observe(1000, 1_000_000)
    assert rate.tokens_per_s == pytest.approx(1000.0)


REQUESTS = st.sampled_from(["a", "b", "c", "d", "e"])
RANKS = st.integers(0, 2)


class NothingLeaks(RuleBasedStateMachine):
    """Any order of operations; once every deadline has passed, nothing is reserved anywhere."""

    @initialize()
    def start(self) -> None:
        self.book = LoadBook(CONFIG)
        self.now = 0.0
        self.expected: dict[str, tuple[int, int, float]] = {}
        self.choice_seqs: dict[str, float] = {}
        self.acknowledged: dict[str, int] = {}

    @rule(rank=RANKS, held_tokens=st.integers(0, 1000))
    def report(self, rank: int, held_tokens: int) -> None:
        held = LoadStat(0, 0, held_tokens, 1000, rank, 0, held_tokens, 8, 0, 0)
        self.book.report(rank, held, self.now)

    @rule(rank=RANKS, request_id=REQUESTS, tokens=st.integers(1, 1000))
    def reserve(self, rank: int, request_id: str, tokens: int) -> None:
        self.book.reserve(rank, request_id, tokens, self.now)
        self.expected[request_id] = (rank, tokens, self.now + TIMEOUT_S)
        self.choice_seqs[request_id] = max(0, self.choice_seqs.get(request_id, 0))

    @rule(rank=RANKS, request_id=REQUESTS, tokens=st.integers(1, 1000), choice_seq=st.integers(0, 2))
    def add_peer_reservation(self, rank: int, request_id: str, tokens: int, choice_seq: int) -> None:
        if self.choice_seqs.get(request_id, -1) < choice_seq and self.acknowledged.get(request_id) != rank:
            self.expected[request_id] = (rank, tokens, self.now + TIMEOUT_S)
            self.choice_seqs[request_id] = choice_seq
        self.book.add_peer_reservation(rank, request_id, tokens, self.now, choice_seq)

    @rule(rank=RANKS, request_ids=st.lists(REQUESTS))
    def acknowledge(self, rank: int, request_ids: list[str]) -> None:
        self.book.acknowledge(rank, request_ids)
        self.acknowledged |= dict.fromkeys(request_ids, rank)
        self.keep(lambda key, held: held[0] != rank or key not in request_ids)

    @rule(request_id=REQUESTS)
    def release(self, request_id: str) -> None:
        self.book.release(request_id)
        self.choice_seqs[request_id] = inf
        self.expected.pop(request_id, None)

    @rule(request_id=REQUESTS)
    def withdraw(self, request_id: str) -> None:
        self.book.withdraw(request_id)
        self.expected.pop(request_id, None)

    @rule(rank=RANKS)
    def drop(self, rank: int) -> None:
        self.book.drop(rank)
        self.keep(lambda key, held: held[0] != rank)

    @rule(rank=RANKS)
    def join(self, rank: int) -> None:
        self.book.join(rank)
        self.keep(lambda key, held: held[0] != rank)

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.book.expire(self.now)
        self.keep(lambda key, held: held[2] > self.now)

    def keep(self, wanted) -> None:  # type: ignore[no-untyped-def]
        self.expected = {key: held for key, held in self.expected.items() if wanted(key, held)}

    @invariant()
    def sums_are_those_of_live_reservations(self) -> None:
        self.book.check_integrity()
        assert self.book.num_reservations == len(self.expected)
        for rank in range(3):
            own = [tokens for holder, tokens, _ in self.expected.values() if holder == rank]
            assert (self.book.waiting_tokens(rank), self.book.num_requests(rank)) == (sum(own), len(own))

    def teardown(self) -> None:
        self.book.expire(self.now + TIMEOUT_S)
        assert self.book.num_reservations == 0
        assert [self.book.waiting_tokens(rank) for rank in range(3)] == [0, 0, 0]
        assert [self.book.num_requests(rank) for rank in range(3)] == [0, 0, 0]


TestNothingLeaks = NothingLeaks.TestCase
TestNothingLeaks.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
