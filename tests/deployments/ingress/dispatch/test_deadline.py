"""A request's time: what still waits when it is over ends, and its rank's work is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from app.deployments.ingress.dispatch.deadline import Deadline
from app.errors import DeadlineError, NoRankError
from tests.support.dispatch_rig import FIRST, LAST, RANKS, REQUEST, Rig
from tests.support.fake_deployments import Silence

SOON_S, LONG_S = 0.05, 60.0


async def test_a_time_that_is_over_before_the_first_token() -> None:
    rig = Rig(RANKS, {"a": [Silence()]})
    with pytest.raises(DeadlineError, match=r"time is over \(header = 0.05 s\)"):
        await rig.dispatcher.start(REQUEST, None, None, deadline=Deadline(SOON_S, "header"))
    assert rig.results == [(0, "aborted")]
    assert rig.cancelled == {"a": 1}
    assert await rig.is_released()


async def test_a_time_that_is_over_while_no_rank_is_found() -> None:
    rig = Rig([NoRankError("none")] * 100, {}, {"rank_wait_s": LONG_S, "pause_s": LONG_S})
    with pytest.raises(DeadlineError):
        await rig.dispatcher.start(REQUEST, None, None, deadline=Deadline(SOON_S, "header"))


async def test_a_time_that_is_over_in_the_middle() -> None:
    rig = Rig(RANKS, {"a": [FIRST, Silence()]})
    deadline = Deadline(0.3, "header")
    stream = await rig.dispatcher.start(REQUEST, None, None, deadline=deadline)
    chunks = aiter(stream)
    await anext(chunks)
    with pytest.raises(DeadlineError):
        await anext(chunks)
    stream.cancel()
    assert rig.results == [(0, "answering"), (0, "deadline_exceeded")]
    assert rig.cancelled == {"a": 1}


async def test_a_time_that_suffices_changes_nothing() -> None:
    rig = Rig(RANKS, {"a": [FIRST, LAST]})
    counted: list[int] = []
    deadline = Deadline(LONG_S, "header")
    stream = await rig.dispatcher.start(REQUEST, None, None, deadline=deadline, on_tokens=counted.append)
    assert [chunk async for chunk in stream] == [FIRST, LAST]
    stream.cancel()
    assert counted == [1, 1]
    assert rig.results[-1] == (0, "finished")


async def test_another_time_out_stays_what_it_is() -> None:
    with pytest.raises(TimeoutError):
        async with Deadline(LONG_S, "header").ends(), asyncio.timeout(0):
            await asyncio.sleep(LONG_S)
