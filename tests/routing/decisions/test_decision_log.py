"""What is remembered of decisions, and what is counted over all of them: with real decisions."""

from __future__ import annotations

from itertools import count

import pytest

from app.routing.decisions.decision import Decision, Prompt
from app.routing.decisions.decision_log import DecisionLog, Outcome
from app.routing.decisions.explanation import explanation, record_json
from tests.support.routing.cores import assigned, load_stat, new_core, set_routable

BLOCK_SIZE = 4
HASHES = list(range(100, 105))


class Router:
    """The core of four ranks, the last of which isn't routable, and the log of what it chose."""

    def __init__(self, capacity: int = 10) -> None:
        self.core = new_core()
        set_routable(self.core, {0: "exact", 1: "exact", 2: "stale"})
        self.log = DecisionLog(capacity)
        self._choice_seqs = count()

    def choose(
        self,
        request_id: str,
        *,
        exclude: frozenset[int] = frozenset(),
        pinned: int | None = None,
        num_output_tokens: int = 0,
    ) -> Decision:
        choice_seq = next(self._choice_seqs)
        prompt = Prompt(
            request_id, HASHES, 20, BLOCK_SIZE, choice_seq=choice_seq, num_output_tokens=num_output_tokens
        )
        decision = self.core.choose(prompt, now=0.0, exclude=exclude, pinned_rank=pinned)
        self.log.record(request_id, decision)
        return decision

    def report_waiting(self, rank: int, tokens: int) -> None:
        self.core.load.report(rank, load_stat(rank=rank, running=1, waiting=1, waiting_tokens=tokens))


def outcome(decision: Decision, result: str, ttft_s: float | None = None, request_id: str = "a") -> Outcome:
    return Outcome(request_id, decision.rank, result, ttft_s, decision.choice_seq)


@pytest.fixture
def router() -> Router:
    return Router()


def test_a_dry_run_decides_the_same_and_changes_nothing(router: Router) -> None:
    router.core.index.store(1, HASHES[:3])
    prompt = Prompt("a", HASHES, 20, BLOCK_SIZE)
    dry = router.core.consider(prompt, now=0.0)
    assert len(router.core.reservations) == 0
    assert assigned(router.core, 1) == (0, 0)
    assert router.core.load.mean_uncached_tokens is None
    assert explanation(router.choose("a"), dp_size=4) == explanation(dry, dp_size=4)


def test_a_receipt_has_every_rank_and_says_why(router: Router) -> None:
    router.core.index.store(1, HASHES[:3])
    router.report_waiting(0, 50)
    receipt = explanation(router.choose("a"), dp_size=4)
    rows = receipt.pop("ranks")
    why = receipt.pop("why")
    assert receipt == {
        "policy": "predicted_ttft",
        "deferred_by": None,
        "resumed": False,
        "output_tokens": 0,
        "prompt_tokens": 20,
        "prompt_blocks": 5,
        "winner": 1,
        "cached_tokens": 12,
        "regret_tokens": 0,
        "predicted_ttft_s": pytest.approx(0.008),
        "pinned_rank": None,
        "failed_ranks": [],
    }
    assert rows[0] == {
        "rank": 0,
        "eligible": True,
        "why_not": None,
        "trust": "exact",
        "cached_tokens": 0,
        "uncached_tokens": 20,
        "waiting_tokens": 50,
        "num_requests": 2,
        "free_tokens": None,
        "admission_s": 0.0,
        "prefill_tokens_per_s": 1000.0,
        "predicted_ttft_s": pytest.approx(0.07),
        "cost": pytest.approx(0.07),
    }
    assert [row.get("cached_tokens") for row in rows] == [0, 12, 0, None]
    assert rows[3] == {"rank": 3, "eligible": False, "why_not": "not alive"}
    assert why == (
        "rank 1 has the lowest cost of predicted_ttft "
        "(seconds to the first token, and of delay and work to others), 0.008; next is rank 2 with 0.02; "
        "it holds 12 of the prompt's 20 tokens; ranks [2] are syncing or stale and are credited nothing"
    )


def test_a_receipt_says_why_a_rank_was_unavailable_then(router: Router) -> None:
    router.core.set_unavailable(0, "worker http://w:1 is down")
    decision = router.choose("a", exclude=frozenset({1}))
    router.core.membership.set(0, "exact")
    rows = explanation(decision, dp_size=4)["ranks"]
    assert rows[0] == {"rank": 0, "eligible": False, "why_not": "unavailable: worker http://w:1 is down"}
    assert [row["why_not"] for row in rows[1:]] == ["the request has failed there already", None, "not alive"]


def test_a_partial_rank_is_credited_and_said_to_be_partial(router: Router) -> None:
    router.core.index.store(1, HASHES[:3])
    set_routable(router.core, {0: "exact", 1: "partial", 2: "stale"})
    receipt = explanation(router.choose("a"), dp_size=4)
    assert (receipt["winner"], receipt["cached_tokens"], receipt["regret_tokens"]) == (1, 12, 0)
    assert [row.get("trust") for row in receipt["ranks"]] == ["exact", "partial", "stale", None]
    assert receipt["why"].endswith(
        "ranks [2] are syncing or stale and are credited nothing; "
        "ranks [1] are partial and may hold more than is known"
    )
    assert router.log.stats.as_json()["decisions"] == {"predicted_ttft": {"partial": 1}}


def test_what_a_partial_rank_is_known_to_hold_is_missed_as_an_exact_ones(router: Router) -> None:
    set_routable(router.core, {0: "partial", 1: "exact"})
    router.core.index.store(0, HASHES[:4])
    router.core.index.store(1, HASHES[:1])
    router.report_waiting(0, 500)
    decision = router.choose("a")
    assert (decision.rank, decision.trust, decision.regret_tokens) == (1, "exact", 12)


def test_a_pinned_requests_receipt_shows_the_ranks_that_it_could_not_have(router: Router) -> None:
    router.core.index.store(1, HASHES)
    decision = router.choose("a", pinned=0)
    receipt = explanation(decision, dp_size=4)
    assert (receipt["policy"], receipt["winner"], receipt["pinned_rank"]) == ("pinned", 0, 0)
    assert [row["eligible"] for row in receipt["ranks"]] == [True, False, False, False]
    assert receipt["ranks"][1]["why_not"] == "the client named rank 0"
    assert (receipt["ranks"][1]["cached_tokens"], receipt["ranks"][1]["cost"]) == (16, None)
    # The client wanted it so: nothing that the policy missed.
    assert decision.regret_tokens == router.log.stats.regret_tokens == 0


def test_what_the_chosen_rank_did_not_hold_is_missed(router: Router) -> None:
    router.core.index.store(0, HASHES[:4])
    router.core.index.store(1, HASHES[:1])
    router.report_waiting(0, 500)
    decision = router.choose("a")
    assert (decision.rank, decision.regret_tokens) == (1, 12)
    router.report_waiting(0, 0)
    assert router.choose("b").regret_tokens == 0
    stats = router.log.stats.as_json()
    assert stats["regret_tokens"] == {"sum": 12, "count": 1}
    assert stats["decisions"] == {"predicted_ttft": {"exact": 2}}
    why = explanation(decision, dp_size=4)["why"]
    assert "it holds 4 of the prompt's 20 tokens, rank 0 holds 16 but has 500 waiting" in why


def test_decisions_are_counted_by_policy_and_trust(router: Router) -> None:
    router.choose("a", pinned=2)
    router.choose("b", pinned=1)
    router.choose("c")
    assert router.log.stats.as_json()["decisions"] == {
        "pinned": {"stale": 1, "exact": 1},
        "predicted_ttft": {"exact": 1},
    }


def test_a_retry_is_a_second_record_and_outcomes_find_theirs(router: Router) -> None:
    first = router.choose("a")
    second = router.choose("a", exclude=frozenset({first.rank}))
    router.log.record_outcome(outcome(first, "died"))
    router.log.record_outcome(outcome(second, "answering", 0.5))
    router.log.record_outcome(outcome(second, "finished", 0.5))
    records = [record_json(record, dp_size=4) for record in router.log.of("a")]
    assert [(each["winner"], each["outcome"], each["actual_ttft_s"]) for each in records] == [
        (first.rank, "died", None),
        (second.rank, "finished", 0.5),
    ]
    assert records[1]["failed_ranks"] == [first.rank]
    assert records[1]["ranks"][first.rank]["why_not"] == "the request has failed there already"


def test_a_request_that_goes_on_elsewhere_is_counted_and_says_where_it_was(router: Router) -> None:
    first = router.choose("a")
    router.log.record_outcome(outcome(first, "answering", 0.5))
    router.log.record_outcome(outcome(first, "moved", 0.5))
    # The same rank again, which is another replica now: the outcomes are told apart all the same.
    second = router.choose("a", pinned=first.rank, num_output_tokens=7)
    router.log.record_outcome(outcome(second, "finished", 0.2))
    records = [record_json(record, dp_size=4) for record in router.log.of("a")]
    shown = ("choice", "outcome", "resumed", "output_tokens", "prompt_tokens", "actual_ttft_s")
    assert [tuple(each[name] for name in shown) for each in records] == [
        (0, "moved", False, 0, 20, 0.5),
        (1, "finished", True, 7, 13, 0.2),
    ]
    assert router.log.stats.as_json()["resumed"] == 1


def test_the_error_of_the_prediction_is_counted_once_for_each_first_token(router: Router) -> None:
    assert router.log.stats.as_json()["ttft_prediction_error_s"] == {
        "mean": None,
        "mean_absolute": None,
        "count": 0,
    }
    for request_id, error in (("a", 0.03), ("b", -0.01)):
        decision = router.choose(request_id)
        actual = decision.predicted_ttft_s + error
        router.log.record_outcome(outcome(decision, "answering", actual, request_id))
        router.log.record_outcome(outcome(decision, "finished", actual, request_id))
        router.core.reservations.release(request_id)
    errors = router.log.stats.as_json()["ttft_prediction_error_s"]
    assert errors == {"mean": pytest.approx(0.01), "mean_absolute": pytest.approx(0.02), "count": 2}


def test_only_the_last_requests_are_remembered() -> None:
    router = Router(capacity=3)
    for number in range(5):
        router.choose(f"r{number}", exclude=frozenset({0}))
        router.choose(f"r{number}", exclude=frozenset({0, 1}))
    assert [len(router.log.of(f"r{number}")) for number in range(5)] == [0, 0, 2, 2, 2]
    router.log.record_outcome(Outcome("r0", 2, "finished", 1.0, choice_seq=1))
    router.log.record_outcome(Outcome("r4", 0, "finished", 1.0, choice_seq=10))
    assert router.log.stats.ttft_errors == 0
