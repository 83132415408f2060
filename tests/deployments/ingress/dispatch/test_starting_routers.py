"""A request that finds no rank has one started, and waits for it as long as it may."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from app.deployments.ingress.dispatch.starting_routers import StartingRouters
from app.deployments.messages import Assignment, ChooseRequest
from app.errors import InvalidRequestError, NoRankAliveError, NoRankError, RankGoneError, RequestError
from tests.support.fake_deployments import FakeRouters, RouterAnswer

REQUEST = ChooseRequest("r", [], 3)
FOUND = Assignment(0, "a")
NONE = NoRankAliveError("no rank is alive")


class FakeAnyRank:
    """Answers to `wait_for_any`, one after another: None when a rank is there."""

    def __init__(self, answers: Iterable[Exception | None]) -> None:
        self._answers = iter(answers)
        self.timeouts_s: list[float] = []

    async def wait_for_any(self, timeout_s: float) -> None:
        self.timeouts_s.append(timeout_s)
        answer = next(self._answers)
        if answer is not None:
            raise answer


def starting(
    choices: Sequence[RouterAnswer], waits: Sequence[Exception | None], start_timeout_s: float = 60
) -> tuple[StartingRouters, FakeRouters, FakeAnyRank]:
    routers, ranks = FakeRouters(choices), FakeAnyRank(waits)
    return (
        StartingRouters(routers, ranks, start_timeout_s=start_timeout_s, retry_s=0),
        routers,
        ranks,
    )


async def test_with_a_rank_nothing_is_waited_for() -> None:
    routers, _, ranks = starting([FOUND], [])
    assert await routers.choose(REQUEST) == FOUND
    assert ranks.timeouts_s == []


async def test_the_choice_is_made_once_a_rank_is_there_and_routers_know_it() -> None:
    routers, asked, ranks = starting([NONE, NONE, NONE, FOUND], [None, RankGoneError("it died"), None])
    assert await routers.choose(REQUEST) == FOUND
    assert asked.asked == [REQUEST] * 4
    assert ranks.timeouts_s == sorted(ranks.timeouts_s, reverse=True)
    assert all(59 < each <= 60 for each in ranks.timeouts_s)


@pytest.mark.parametrize(
    ("choices", "waits", "start_timeout_s"),
    [
        pytest.param([NONE], [TimeoutError()], 60, id="none starts"),
        pytest.param([NONE] * 3, [RankGoneError("it died")] * 2, 0.0, id="all that start die"),
    ],
)
async def test_when_none_starts_in_time_the_answer_says_when_to_try_again(
    choices: list[RouterAnswer], waits: list[Exception], start_timeout_s: float
) -> None:
    routers, _, _ = starting(choices, waits, start_timeout_s)
    with pytest.raises(NoRankAliveError) as caught:
        await routers.choose(REQUEST)
    assert f"none has started within {start_timeout_s:g} s (autoscaling.start_timeout_s)" in str(caught.value)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


@pytest.mark.parametrize("error", [NoRankError("all are unavailable"), InvalidRequestError("no such rank")])
async def test_what_another_rank_would_not_change_is_not_waited_for(error: RequestError) -> None:
    routers, _, ranks = starting([error], [])
    with pytest.raises(type(error), match=str(error)):
        await routers.choose(REQUEST)
    assert ranks.timeouts_s == []


async def test_a_preview_starts_nothing() -> None:
    routers, _, ranks = starting([NONE], [])
    with pytest.raises(NoRankAliveError):
        await routers.explain(REQUEST)
    assert ranks.timeouts_s == []


async def test_everything_else_goes_to_the_routers() -> None:
    routers, asked, _ = starting([FOUND], [])
    await routers.mark_failed(1, "b")
    await routers.release("r")
    assert (asked.failed, await asked.released.get()) == ([(1, "b")], "r")
