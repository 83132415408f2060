"""LoadBook: what is waiting where, and measured rates."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from app.routing.core import RoutingCore
from app.routing.load.prefill_rates import RATE_NOISE
from app.routing.membership import RoutableRanks
from app.routing.rank_view import ROWS
from tests.support.routing.cores import assigned, load_stat, new_core


def prefill_rates(core: RoutingCore, ranks: Iterable[int]) -> dict[int, float]:
    routable = RoutableRanks(dict.fromkeys(ranks, "exact"))
    rates = np.broadcast_to(np.asarray(core.load.columns(routable)[1]), len(routable))
    return dict(zip(routable, rates.tolist(), strict=True))


@pytest.fixture
def core() -> RoutingCore:
    return new_core()


def test_waiting_is_what_was_reported_plus_what_was_reserved_since(core: RoutingCore) -> None:
    core.load.report(0, load_stat(running=2, waiting=1, waiting_tokens=100))
    core.reservations.add(0, "a", 40, now=0.0)
    assert (core.load.waiting_tokens(0), core.load.num_requests(0)) == (140, 4)
    core.load.report(0, load_stat(running=2, waiting=2, waiting_tokens=140))
    core.reservations.acknowledge(0, ["a"])
    assert (core.load.waiting_tokens(0), core.load.num_requests(0)) == (140, 4)


def test_columns_say_of_many_ranks_what_the_book_says_of_each(core: RoutingCore) -> None:
    core.load.report(
        3, load_stat(running=2, waiting=1, waiting_tokens=100, prefilled=4000, busy_us=1_000_000)
    )
    core.reservations.add(100, "a", 40, now=0.0)
    core.reservations.add(3, "b", 7, now=0.0)
    ranks = [3, 5, 100, 1000]
    routable = RoutableRanks(dict.fromkeys(ranks, "exact"))
    counts, rate = core.load.columns(routable)
    assert (
        counts[ROWS.waiting_tokens].tolist()
        == [core.load.waiting_tokens(rank) for rank in ranks]
        == [107, 0, 40, 0]
    )
    assert (
        counts[ROWS.num_requests].tolist() == [core.load.num_requests(rank) for rank in ranks] == [4, 0, 1, 0]
    )
    assert counts[ROWS.assigned_tokens].tolist() == [7, 0, 40, 0]
    assert counts[ROWS.assigned_requests].tolist() == [1, 0, 1, 0]
    assert rate == 4000.0
    core.reservations.release("a")
    core.drop(3)
    assert counts[ROWS.waiting_tokens].tolist() == [107, 0, 40, 0], "what was handed out stays"
    counts, rate = core.load.columns(routable)
    assert counts[ROWS.waiting_tokens].tolist() == [0, 0, 0, 0]
    assert rate == 1000.0


def test_dropping_a_rank_forgets_all_of_it(core: RoutingCore) -> None:
    core.load.report(0, load_stat(waiting_tokens=7, prefilled=1000, busy_us=500_000))
    core.reservations.add(0, "a", 40, now=0.0)
    core.reservations.add(1, "b", 5, now=0.0)
    core.drop(0)
    assert (core.load.waiting_tokens(0), core.load.num_requests(0), len(core.reservations)) == (0, 0, 1)
    assert core.load.last_report(0) is None
    assert prefill_rates(core, [0]) == {0: 1000.0}
    core.reservations.release("a")
    core.check_integrity()


def test_a_new_rank_does_not_have_to_catch_up_with_history(core: RoutingCore) -> None:
    for turn in range(10):
        core.reservations.add(turn % 2, f"r{turn}", 100, now=0.0)
    core.join(0)
    assert assigned(core, 0) == assigned(core, 1) == (500, 5)


def test_rates_are_the_initial_one_until_measured_then_the_typical_one(core: RoutingCore) -> None:
    assert prefill_rates(core, [0, 1]) == {0: 1000.0, 1: 1000.0}
    core.load.report(0, load_stat(prefilled=4000, busy_us=1_000_000))
    assert prefill_rates(core, [0, 1]) == {0: 4000.0, 1: 4000.0}


def test_noise_between_equal_ranks_is_no_difference_but_a_slow_rank_is(core: RoutingCore) -> None:
    for rank, tokens in enumerate([1000, 1000 * (1 + RATE_NOISE / 2), 1000 * (1 - RATE_NOISE / 2), 300]):
        core.load.report(rank, load_stat(prefilled=int(tokens), busy_us=1_000_000))
    core.load.report(4, load_stat(prefilled=1000, busy_us=1_000_000))
    assert prefill_rates(core, range(5)) == {0: 1000.0, 1: 1000.0, 2: 1000.0, 3: 300.0, 4: 1000.0}
