"""Workers that have requests of ours and don't go on with them, and such as only let them wait."""

from __future__ import annotations

import asyncio
import threading

import pytest

from app.engine.remote.load import OwnRequest, RemoteLoad
from app.engine.remote.progress import WorkerProgress
from app.generation import SamplingParams
from tests.engine.remote.conftest import NewRemote, NewWorker, until_available
from tests.support.deadlines import until
from tests.support.engine.live_engine import all_of, new_request, tokens
from tests.support.routing.cores import load_stat

PROMPT = list(range(5, 26))
LONG = SamplingParams(40, temperature=0.0, ignore_eos=True)
TIMEOUT_S = 1.5
"""More than the second between two heartbeats, or two questions for the load."""


@pytest.mark.parametrize("is_vllm", [False, True])
async def test_a_worker_whose_engine_stands_still_is_unavailable_until_it_goes_on(
    is_vllm: bool, new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker = await new_worker(is_vllm=is_vllm)
    engine = new_remote(worker.url, stall_timeout_s=TIMEOUT_S)
    await until_available(engine)
    assert len(tokens(await all_of(engine.admit(new_request("a", PROMPT, LONG))))) == 40
    may_go_on = threading.Event()
    held = asyncio.create_task(worker.rank.call(lambda _: may_go_on.wait()))
    stream = engine.admit(new_request("b", PROMPT, LONG))
    await until(lambda: engine.status.unavailable, "seen to stand still")
    assert (engine.status.unavailable or "").startswith(f"{worker.url}: no step for ")
    engine.check_health()  # another replica would find the same worker
    may_go_on.set()
    await held
    assert len(tokens(await all_of(stream))) == 40
    await until_available(engine)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def with_a_request(clock: Clock) -> tuple[WorkerProgress, RemoteLoad, OwnRequest]:
    """Of a worker that has one request of ours, and took no time for an earlier one."""
    load = RemoteLoad(0, clock=clock)
    progress = WorkerProgress(load, 10.0, clock)
    progress.record_sent()
    progress.record_step()
    own = load.add("a", 5, 5, 1)
    progress.record_sent()
    return progress, load, own


def test_a_request_that_waits_behind_others_is_no_stall() -> None:
    clock = Clock()
    progress, _, _ = with_a_request(clock)
    for second in range(100):
        clock.now += 1.0
        progress.record_polled(load_stat(waiting_tokens=100 + second // 5))
        assert progress.fault is None
    for _ in range(100):
        clock.now += 1.0
        progress.record_report()
        assert progress.fault is None


def test_where_the_worker_tells_no_load_only_a_request_that_has_begun_can_stall() -> None:
    clock = Clock()
    progress, load, _ = with_a_request(clock)
    clock.now += 1000.0
    assert progress.fault is None
    begun = load.add("b", 5, 5, 1)
    load.first_token(begun, 0)
    progress.record_step()
    clock.now += 1000.0
    assert progress.fault is not None


def test_answers_that_never_change_are_no_sign_of_life() -> None:
    clock = Clock()
    progress, load, own = with_a_request(clock)
    for _ in range(30):
        clock.now += 1.0
        progress.record_polled(load_stat(waiting_tokens=7))
    assert progress.fault == "no step for 29 s, though it has work"
    # The request was taken to another rank: only that its load changes says that it goes on.
    load.remove(own)
    progress.record_ended()
    assert progress.fault is not None
    progress.record_polled(load_stat(waiting_tokens=0))
    assert progress.fault is None


def test_another_worker_at_the_url_starts_with_its_own_time() -> None:
    clock = Clock()
    progress, _, _ = with_a_request(clock)
    progress.record_report()
    clock.now += 1000.0
    assert progress.fault is not None
    progress.forget()
    assert progress.fault is None
