"""How many calls run at a time, and for how long, by how the last ones went."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from app.deployments.pace import Pace
from tests.support.deadlines import until


class SlowServer:
    """Serves one call after another, each in `seconds` of its own; one that was given up costs as much."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._free_at = 0.0
        self.num_waiting = self.most_waiting = self.num_answered = 0

    async def call(self) -> None:
        self.num_waiting += 1
        self.most_waiting = max(self.most_waiting, self.num_waiting)
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + self._seconds
        try:
            await asyncio.sleep(self._free_at - now)
            self.num_answered += 1
        finally:
            self.num_waiting -= 1


async def test_no_more_run_at_a_time_than_allowed_and_all_have_their_turn() -> None:
    pace, server = Pace(most=3, timeout_s=5.0, longest_timeout_s=5.0), SlowServer(0.001)

    async def call() -> None:
        async with pace.call():
            await server.call()

    await asyncio.gather(*(call() for _ in range(20)))
    assert (server.num_answered, server.most_waiting) == (20, 3)


async def test_callers_who_try_again_and_again_do_not_drown_a_server_that_is_slow() -> None:
    """Without a pace, 50 callers at 10 ms are 0.5 s of work, again and again; each waits for 0.05 s."""
    pace, server = Pace(most=64, timeout_s=0.05, longest_timeout_s=0.4), SlowServer(0.01)

    async def call() -> None:
        while True:
            with suppress(TimeoutError):
                async with pace.call():
                    await server.call()
                return
            await asyncio.sleep(0.02)

    await asyncio.wait_for(asyncio.gather(*(call() for _ in range(50))), 15.0)
    assert server.num_answered == 50


async def test_all_that_time_out_together_slow_it_down_once() -> None:
    pace = Pace(most=8, timeout_s=0.02, longest_timeout_s=5.0)

    async def hang() -> None:
        async with pace.call():
            await asyncio.Event().wait()

    hung = await asyncio.gather(*(hang() for _ in range(8)), return_exceptions=True)
    assert all(isinstance(each, TimeoutError) for each in hung)
    server = SlowServer(0.03)

    async def call() -> None:
        async with pace.call():
            await server.call()

    await call()
    assert server.num_answered == 1, "0.02 s have become 0.04 s"
    await asyncio.gather(*(call() for _ in range(20)), return_exceptions=True)
    assert server.most_waiting >= 5, "half as many at a time, and one more since"


async def test_a_call_that_gets_no_turn_ends_in_time_and_leaves_the_place_to_others() -> None:
    pace, end = Pace(most=1, timeout_s=0.5, longest_timeout_s=0.5), asyncio.Event()

    async def call() -> None:
        async with pace.call():
            await end.wait()

    first = asyncio.create_task(call())
    cancelled = asyncio.create_task(call())
    late = [asyncio.create_task(call()) for _ in range(2)]
    await asyncio.sleep(0)
    cancelled.cancel()
    for each in (first, *late):
        with pytest.raises(TimeoutError):
            await each
    end.set()
    for _ in range(2):
        async with pace.call():
            pass


async def test_a_turn_that_comes_to_a_caller_who_has_just_left_goes_on_to_the_next() -> None:
    pace, end = Pace(most=1, timeout_s=5.0, longest_timeout_s=5.0), asyncio.Event()

    async def call() -> None:
        async with pace.call():
            await end.wait()

    calls = [asyncio.create_task(call()) for _ in range(3)]
    await asyncio.sleep(0)
    end.set()
    await asyncio.sleep(0)
    calls[1].cancel()
    await until(calls[2].done, "its turn")
    with pytest.raises(asyncio.CancelledError):
        await calls[1]
