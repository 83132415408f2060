"""An engine on its thread that breaks, or is stopped: no caller is left waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from app.engine.torch.engine_thread import EngineThread
from app.errors import EngineFailedError, InvalidRequestError, RequestError, RequestFailedError
from app.generation import SamplingParams, TokenChunk
from tests.support.deadlines import until
from tests.support.engine.doubles import CHOICE, OneToken
from tests.support.engine.live_engine import LONG, SHORT, LiveEngine, all_of, error_of, tokens
from tests.support.engine.tiny_engine import tiny_engine

NewEngine = Callable[..., LiveEngine]


@pytest.fixture
async def new_engine(tiny_llama_dir: Path) -> AsyncIterator[NewEngine]:
    threads: list[EngineThread] = []

    def make(model_dir: Path = tiny_llama_dir, **options: Any) -> LiveEngine:
        scheduler = {"max_running_requests": 2, "max_waiting_requests": 3, "max_batch_tokens": 64}
        thread = EngineThread(tiny_engine(model_dir, scheduler=scheduler, **options), dp_rank=0)
        thread.start(None)
        threads.append(thread)
        return LiveEngine(thread)

    yield make
    for thread in threads:
        thread.stop()


@pytest.fixture
async def live(new_engine: NewEngine) -> LiveEngine:
    return new_engine()


async def test_what_a_call_raises_is_the_callers(live: LiveEngine) -> None:
    with pytest.raises(ZeroDivisionError):
        await live.call(lambda engine: 1 // 0)
    live.thread.check_health()
    assert len(await all_of(live.admit())) == 3


async def test_a_sample_that_fails_ends_the_request_and_its_other_samples(
    new_tiny_llama: Callable[..., Path], new_engine: NewEngine
) -> None:
    model_dir = new_tiny_llama()
    weights = load_file(model_dir / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, model_dir / "model.safetensors")
    live = new_engine(model_dir)
    assert "logits are not finite" in (await error_of(live.admit(params=LONG, n=3))).message
    assert await live.load() == (0, 0, 0)


async def test_what_no_output_can_become_is_an_error_and_not_the_end_of_the_engine(
    new_engine: NewEngine,
) -> None:
    live = new_engine(new_grammar=lambda wanted: OneToken())
    params = SamplingParams(10, structured_output=CHOICE, min_tokens=1, stop_token_ids=(7,))
    error = await error_of(live.admit(params=params))
    assert isinstance(error, RequestFailedError)
    assert "no token may follow" in error.message
    assert len(tokens(await all_of(live.admit(params=SHORT)))) == 3


class BrokenText:
    """A detokeniser that fails on a request's second token."""

    def __init__(self) -> None:
        self.matched: str | None = None
        self._num_tokens = 0

    def push(self, token_id: int) -> str:
        self._num_tokens += 1
        if self._num_tokens == 2:
            raise RuntimeError("no such character")
        return ""


async def test_what_breaks_in_an_admission_is_that_requests_error_and_not_the_end_of_the_engine(
    new_engine: NewEngine, caplog: pytest.LogCaptureFixture
) -> None:
    live = new_engine(new_text_stream=lambda *given: BrokenText())
    goes_on = live.admit(params=LONG)
    await anext(goes_on)
    stopped = SamplingParams(10, temperature=0, ignore_eos=True, stop=("x",))
    errors = [
        await error_of(live.admit(params=stopped, earlier_outputs={0: [7, 8]}, request_id="guilty")),
        await error_of(live.admit(prompt=["a"], request_id="guilty")),
    ]
    assert [(type(error), error.status) for error in errors] == [(RequestFailedError, 500)] * 2
    assert {error.message for error in errors} == {"the engine can't admit the request; its log says why"}
    logged = [record.exc_info for record in caplog.records if "'guilty'" in record.message]
    assert [info and info[0] for info in logged] == [RuntimeError, TypeError]
    assert len(await all_of(goes_on)) == 199
    assert len(await all_of(live.admit(request_id="guilty"))) == 3
    assert await live.load() == (0, 0, 0)
    await live.call(lambda engine: engine.check_integrity())


@pytest.mark.parametrize(
    ("earlier_outputs", "field"),
    [
        ({0: None}, "earlier_outputs.0: null;"),
        ({0: 5}, "earlier_outputs.0: 5;"),
        ({0: [1.5]}, "earlier_outputs.0: [1.5];"),
        ({0: [True]}, "earlier_outputs.0: [true];"),
        ({0: "ab"}, "earlier_outputs.0: 'ab';"),
        ({"0": [1]}, "earlier_outputs.'0': no such sample; allowed: 0 to 1"),
        ({0: [1], "1": [1]}, "earlier_outputs.'1': no such sample; allowed: 0 to 1"),
        ([[1]], "earlier_outputs: [[1]];"),
    ],
)
async def test_earlier_outputs_of_wrong_types_are_refused_and_the_engine_goes_on(
    earlier_outputs: Any, field: str, live: LiveEngine
) -> None:
    error = await error_of(live.admit(n=2, earlier_outputs=earlier_outputs))
    assert isinstance(error, InvalidRequestError)
    assert error.message.startswith(field)
    assert error.param == "earlier_outputs"
    assert len(await all_of(live.admit())) == 3


async def test_an_engine_that_breaks_in_a_step_ends_every_stream_and_its_health(
    new_engine: NewEngine,
) -> None:
    live = new_engine(new_text_stream=lambda *given: BrokenText())
    innocent = live.admit(params=LONG)
    await anext(innocent)
    guilty = live.admit(params=SamplingParams(max_tokens=50, temperature=0, ignore_eos=True, stop=("x",)))
    waiting = live.admit(params=LONG)
    call = asyncio.create_task(never_ending_calls(live))
    errors = await asyncio.gather(*map(error_at_last, [innocent, guilty, waiting]))
    assert all("its log says why" in error.message for error in errors)
    assert len(set(map(id, errors))) == 3, "each stream raises an error of its own"
    with pytest.raises(EngineFailedError):
        await call
    check_it_has_stopped(live)


class HeldText(BrokenText):
    """A detokeniser that waits for `may_go_on` at a request's second token: the step stands still."""

    def __init__(self, may_go_on: threading.Event) -> None:
        super().__init__()
        self._may_go_on = may_go_on

    def push(self, token_id: int) -> str:
        self._num_tokens += 1
        if self._num_tokens == 2:
            self._may_go_on.wait()
        return ""


@pytest.fixture
async def stalling(new_engine: NewEngine) -> AsyncIterator[tuple[LiveEngine, threading.Event]]:
    """An engine in whose second step a request waits for the event; 0.1 s is too long for it."""
    may_go_on = threading.Event()
    live = new_engine(settings={"stall_timeout_s": 0.1}, new_text_stream=lambda *given: HeldText(may_go_on))
    await all_of(live.admit())
    yield live, may_go_on
    may_go_on.set()


HELD = SamplingParams(max_tokens=50, temperature=0, ignore_eos=True, stop=("x",))


async def test_an_engine_that_stands_still_says_so_until_it_makes_a_step_again(
    stalling: tuple[LiveEngine, threading.Event],
) -> None:
    live, may_go_on = stalling
    assert live.thread.status.unavailable is None
    stream = live.admit(params=HELD)
    await until(lambda: live.thread.status.unavailable, "seen to stand still")
    assert live.thread.status.unavailable == "no step for 0 s, though it has work"
    live.thread.check_health()
    may_go_on.set()
    assert len(await all_of(stream)) == 50
    await until(lambda: live.thread.status.unavailable is None, "available again")
    live.thread.check_health()


async def test_an_engine_that_goes_on_standing_still_is_to_be_replaced(
    stalling: tuple[LiveEngine, threading.Event],
) -> None:
    live, may_go_on = stalling
    stream = live.admit(params=HELD)

    def is_lost() -> bool:
        try:
            live.thread.check_health()
        except EngineFailedError as error:
            return "stands still: no step for" in error.message
        return False

    await until(is_lost, "unhealthy")
    with pytest.raises(EngineFailedError):
        live.admit()
    may_go_on.set()
    assert len(await all_of(stream)) == 50


async def test_an_engine_that_stands_still_can_be_stopped(
    stalling: tuple[LiveEngine, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    live, _ = stalling
    live.admit(params=HELD)
    await until(lambda: live.thread.status.unavailable, "seen to stand still")
    await asyncio.to_thread(live.thread.stop)
    assert "the engine of rank 0 stands still; it ends with its process" in caplog.text


async def test_stopping_leaves_no_caller_waiting(live: LiveEngine) -> None:
    stream = live.admit(params=LONG)
    await anext(stream)
    call = asyncio.create_task(never_ending_calls(live))
    await asyncio.sleep(0)  # the call is in the inbox
    await asyncio.to_thread(live.thread.stop)
    await error_at_last(stream)
    with pytest.raises(EngineFailedError):
        await call
    check_it_has_stopped(live)


async def test_stopping_twice(live: LiveEngine) -> None:
    await all_of(live.admit())
    live.thread.stop()
    live.thread.stop()
    check_it_has_stopped(live)
    with pytest.raises(EngineFailedError):
        await asyncio.wrap_future(live.thread.content(len))


def check_it_has_stopped(live: LiveEngine) -> None:
    with pytest.raises(EngineFailedError):
        live.thread.check_health()
    with pytest.raises(EngineFailedError):
        live.admit()


async def error_at_last(stream: AsyncIterator[TokenChunk]) -> RequestError:
    """The engine's failure, with which a stream ends after some chunks or none."""
    async with asyncio.timeout(10):
        with pytest.raises(EngineFailedError) as raised:
            await all_of(stream)
    return raised.value


async def never_ending_calls(live: LiveEngine) -> None:
    async with asyncio.timeout(10):
        while True:
            await live.load()
