"""Work off a request's path: tasks that don't belong to it, and items sent in batches."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from app.deployments.background import BatchSender, detached_task
from app.routing.decisions.decision_log import Outcome

request_id: ContextVar[str] = ContextVar("request_id", default="none")


async def test_a_detached_task_knows_no_request_and_its_result_and_errors_come_back() -> None:
    async def current() -> str:
        return request_id.get()

    async def fail() -> None:
        raise ValueError("broke")

    token = request_id.set("served")
    try:
        assert (await current(), await detached_task(current())) == ("served", "none")
        with pytest.raises(ValueError, match="broke"):
            await detached_task(fail())
    finally:
        request_id.reset(token)


async def test_items_are_sent_together_and_in_order() -> None:
    sent: asyncio.Queue[list[Outcome]] = asyncio.Queue()
    sender = BatchSender(sent.put, interval_s=0.01)
    outcomes = [Outcome(f"r{number}", 0, "finished", 0.1) for number in range(5)]
    for outcome in outcomes[:3]:
        sender.put(outcome)
    assert sent.empty()
    assert await sent.get() == outcomes[:3]
    for outcome in outcomes[3:]:
        sender.put(outcome)
    assert await sent.get() == outcomes[3:]


async def test_while_items_cannot_be_sent_the_oldest_are_dropped() -> None:
    sent: list[list[Outcome]] = []
    trying, reachable, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def send(outcomes: list[Outcome]) -> None:
        trying.set()
        await reachable.wait()
        sent.append(outcomes)
        if len(sent) == 2:
            done.set()

    sender = BatchSender(send, interval_s=0.0, max_waiting=10)
    sender.put(Outcome("first", 0, "finished"))
    await trying.wait()
    for number in range(100):
        sender.put(Outcome(f"r{number}", 0, "finished"))
    reachable.set()
    await done.wait()
    assert [each.request_id for each in sent[1]] == [f"r{number}" for number in range(90, 100)]
