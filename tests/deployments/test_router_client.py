"""Calls to routers: what they return, and what becomes of routers that are dead, silent or broken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from app.deployments.messages import Assignment, ChooseRequest, PeerReservation, Unroutable
from app.deployments.router_client import ROUTER_TIMEOUT_S, RouterClient
from app.errors import NoRankError, NoRouterError, PromptTooLongError
from app.routing.decisions.decision_log import Outcome
from tests.support.deadlines import until
from tests.support.fake_handle import BUG, DEAD, FAILED, GONE, FakeHandle

REQUEST = ChooseRequest("r", [1, 2], 40)
RESERVATION = PeerReservation("r", 3, "replica", 16, 0)
Call = Callable[[RouterClient], Awaitable[Any]]

QUESTIONS_TO_ONE: dict[str, Call] = {
    "choose": lambda routers: routers.choose(REQUEST),
    "explain": lambda routers: routers.explain(REQUEST),
    "standings": lambda routers: routers.standings([]),
    "view": lambda routers: routers.view(),
}
QUESTIONS_TO_ALL: dict[str, Call] = {
    "stats": lambda routers: routers.stats(),
    "decisions": lambda routers: routers.decisions("r"),
    "audit": lambda routers: routers.audit(),
}
REPORTS: dict[str, Call] = {
    "release": lambda routers: routers.release("r"),
    "mark_failed": lambda routers: routers.mark_failed(3, "replica"),
    "record_outcomes": lambda routers: routers.record_outcomes([Outcome("r", 0, "finished")]),
    "add_peer_reservations": lambda routers: routers.add_peer_reservations("me", [RESERVATION]),
}


def called(handle: FakeHandle) -> list[str]:
    """The methods, in the order of the calls."""
    return [method for method, _, _ in handle.calls]


def client(answers: dict[str, list[Any]] | None) -> tuple[RouterClient, FakeHandle]:
    fake: Any = FakeHandle(answers)
    return RouterClient(fake), fake


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("choose", Assignment(1, "replica")),
        ("explain", {"winner": 1}),
        ("standings", []),
        ("view", {"router": "a", "ranks": [{"rank": 1}]}),
    ],
)
async def test_a_question_to_one_router_has_its_answer(method: str, answer: Any) -> None:
    routers, handle = client({method: [answer]})
    assert await QUESTIONS_TO_ONE[method](routers) == answer
    ((called_method, arguments, keywords),) = handle.calls
    assert (called_method, keywords) == (method, {"nth": 0})
    assert arguments == {"view": (), "standings": ([],)}.get(method, (REQUEST,))


@pytest.mark.parametrize("method", ["choose", "explain"])
async def test_a_choice_that_a_router_cannot_make_is_its_error(method: str) -> None:
    error = PromptTooLongError("too long")
    routers, _ = client({method: [Unroutable(error)]})
    with pytest.raises(PromptTooLongError) as caught:
        await QUESTIONS_TO_ONE[method](routers)
    assert caught.value is error


@pytest.mark.parametrize("method", QUESTIONS_TO_ONE)
@pytest.mark.parametrize(
    "failure",
    [DEAD, GONE, TimeoutError(), grpc.RpcError(), asyncio.CancelledError()],
    ids=["dead", "gone", "silent", "unreachable", "being stopped"],
)
async def test_a_router_that_does_not_answer_is_an_error_of_its_own(
    method: str, failure: BaseException
) -> None:
    routers, _ = client({method: [failure]})
    with pytest.raises(NoRouterError, match=r"no router answers|the router is being stopped") as caught:
        await QUESTIONS_TO_ONE[method](routers)
    assert (caught.value.status, caught.value.code) == (503, NoRankError("").code)


@pytest.mark.parametrize("method", [*QUESTIONS_TO_ONE, *QUESTIONS_TO_ALL])
async def test_without_any_router_a_question_is_an_error(method: str) -> None:
    routers, _ = client(None)
    with pytest.raises(NoRouterError, match="no router answers"):
        await (QUESTIONS_TO_ONE | QUESTIONS_TO_ALL)[method](routers)


@pytest.mark.parametrize("method", QUESTIONS_TO_ONE)
async def test_an_error_in_a_routers_code_is_not_hidden(method: str) -> None:
    routers, _ = client({method: [FAILED]})
    with pytest.raises(ValueError, match=r"^bug$") as caught:
        await QUESTIONS_TO_ONE[method](routers)
    assert caught.value is BUG


@pytest.mark.parametrize("method", QUESTIONS_TO_ALL)
async def test_a_question_to_all_leaves_out_routers_that_have_just_died(method: str) -> None:
    routers, handle = client({method: ["first", DEAD, "third", asyncio.CancelledError()]})
    assert await QUESTIONS_TO_ALL[method](routers) == ["first", "third"]
    assert handle.calls == [(method, ("r",) if method == "decisions" else (), {})]


async def test_after_a_router_that_does_not_answer_the_next_one_is_asked_until_the_nearest_answers() -> None:
    answers = {"choose": [DEAD, Assignment(1, "replica")], "standings": [DEAD, []]}
    routers, handle = client(answers)
    with pytest.raises(NoRouterError):
        await routers.choose(REQUEST)
    for _ in range(2):
        assert await routers.choose(REQUEST) == Assignment(1, "replica")
    assert [keywords["nth"] for _, _, keywords in handle.calls] == [0, 1, 1]

    await until(lambda: "standings" in called(handle), "a look whether the nearest answers")
    assert await routers.choose(REQUEST) == Assignment(1, "replica"), "it doesn't"
    answers["choose"][0] = Assignment(0, "replica")
    answers["standings"][0] = []
    await until(lambda: called(handle).count("standings") == 2, "another look")
    assert await routers.choose(REQUEST) == Assignment(0, "replica")


async def test_several_calls_that_fail_at_one_router_pass_over_that_one_only() -> None:
    routers, _ = client({"choose": [DEAD, Assignment(1, "replica"), DEAD]})
    failed = await asyncio.gather(*(routers.choose(REQUEST) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in failed] == [NoRouterError] * 3
    assert await routers.choose(REQUEST) == Assignment(1, "replica")


async def test_the_caller_can_cancel_its_call() -> None:
    routers, handle = client({"choose": [asyncio.Future()]})
    call = asyncio.create_task(routers.choose(REQUEST))
    await until(lambda: handle.calls, "the call")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


HANGS = "the call never ends"
VIEWS = [{"router": name, "ranks": []} for name in "ab"]


@pytest.mark.parametrize(
    ("answers", "views"),
    [
        (VIEWS, VIEWS),
        (VIEWS[::-1], VIEWS[::-1]),
        ([DEAD, VIEWS[1]], VIEWS[1:]),
        ([HANGS, VIEWS[1]], VIEWS[1:]),
        ([VIEWS[0], VIEWS[0]], VIEWS[:1]),
    ],
    ids=["both", "the nearest's first", "one is dead", "one hangs", "one answers for the other"],
)
async def test_the_views_of_the_routers_that_answer(answers: list[Any], views: list[Any]) -> None:
    routers, handle = client({"view": [asyncio.Future() if each is HANGS else each for each in answers]})
    assert await routers.views(2) == views
    assert handle.calls == [("view", (), {"nth": nth}) for nth in range(2)]


@pytest.mark.parametrize("answers", [[DEAD, GONE], None], ids=["none answers", "there is none"])
async def test_without_any_router_there_are_no_views(answers: list[Any] | None) -> None:
    routers, _ = client(None if answers is None else {"view": answers})
    with pytest.raises(NoRouterError, match="no router answers"):
        await routers.views(2)


async def test_an_error_in_a_routers_code_is_not_hidden_by_other_routers_that_are_gone() -> None:
    routers, _ = client({"view": [DEAD, FAILED]})
    with pytest.raises(ValueError, match=r"^bug$"):
        await routers.views(2)


@pytest.mark.parametrize("method", QUESTIONS_TO_ALL)
async def test_when_all_routers_have_just_died_no_router_answers(method: str) -> None:
    routers, _ = client({method: [DEAD, asyncio.CancelledError()]})
    with pytest.raises(NoRouterError, match="no router answers"):
        await QUESTIONS_TO_ALL[method](routers)


@pytest.mark.parametrize(("method", "seconds"), [("stats", "2"), ("decisions", "2"), ("audit", "60")])
async def test_a_question_to_all_needs_all_answers_in_time(method: str, seconds: str) -> None:
    routers, _ = client({method: ["first", TimeoutError()]})
    with pytest.raises(NoRouterError, match=f"not every router answers within {seconds} s"):
        await QUESTIONS_TO_ALL[method](routers)


@pytest.mark.parametrize("method", QUESTIONS_TO_ALL)
async def test_a_question_to_all_fails_when_one_routers_code_does(method: str) -> None:
    routers, _ = client({method: ["first", FAILED]})
    with pytest.raises(ValueError, match=r"^bug$") as caught:
        await QUESTIONS_TO_ALL[method](routers)
    assert caught.value is BUG


@pytest.mark.parametrize("method", REPORTS)
@pytest.mark.parametrize(
    "answers",
    [[None, None], [None, DEAD], [DEAD], [FAILED, None], [TimeoutError()], [asyncio.CancelledError()], None],
)
async def test_a_report_reaches_every_router_that_is_there_and_never_raises(
    method: str, answers: list[Any] | None
) -> None:
    routers, handle = client(None if answers is None else {method: answers})
    await REPORTS[method](routers)
    (called, arguments, keywords) = handle.calls[0]
    assert len(handle.calls) == 1
    assert (called, keywords) == (method, {})
    assert (
        arguments
        == {
            "release": ("r",),
            "mark_failed": (3, "replica"),
            "record_outcomes": ([Outcome("r", 0, "finished")],),
            "add_peer_reservations": ("me", [RESERVATION]),
        }[method]
    )


async def test_a_request_does_not_wait_for_a_router_that_hangs_to_hear_of_a_failure() -> None:
    answers = asyncio.Event()
    routers, handle = client({"mark_failed": [None, answers]})
    start = time.monotonic()
    await routers.mark_failed(3, "replica")
    assert time.monotonic() - start < ROUTER_TIMEOUT_S / 2
    assert called(handle) == ["mark_failed"]
    answers.set()
