"""An engine on its thread, driven through `RankEngine`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from app.engine.interface import AdmittedRequest
from app.engine.torch.engine import Engine
from app.engine.torch.engine_thread import EngineThread
from app.errors import RequestError
from app.generation import GenerateRequest, SamplingParams, TokenChunk
from tests.support.deadlines import until

Result = TypeVar("Result")

LONG = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)


def new_request(
    request_id: str, prompt: Sequence[int] = (5, 6, 7, 8, 9), params: SamplingParams = SHORT, **fields: Any
) -> GenerateRequest:
    """A request for 3 greedy tokens, unless it is said otherwise."""
    return GenerateRequest(request_id, list(prompt), params, **fields)


class LiveEngine:
    """An engine's thread, and requests to it that are numbered as they come."""

    def __init__(self, thread: EngineThread) -> None:
        self.thread = thread
        self._num_requests = 0

    def new_id(self) -> str:
        """An id that no request has had."""
        self._num_requests += 1
        return f"r{self._num_requests}"

    def admit(self, *prompt_and_params: Any, **fields: Any) -> AdmittedRequest:
        """The chunks of a new request; the arguments are `new_request`'s after the id."""
        request_id = fields.pop("request_id", None) or self.new_id()
        return self.thread.admit(new_request(request_id, *prompt_and_params, **fields))

    async def call(self, function: Callable[[Engine], Result]) -> Result:
        """What `function` returns when the thread runs it between two steps."""
        return await asyncio.wrap_future(self.thread.submit(function))

    async def load(self) -> tuple[int, int, int]:
        """Running, waiting, tokens held, as the engine counts them between two steps."""
        stat = await self.call(lambda engine: engine.load_stat(0))
        return stat.num_running_reqs, stat.num_waiting_reqs, stat.num_tokens

    async def until_load(self, running: int, waiting: int) -> None:
        """Wait until so many requests run and wait."""
        load: tuple[int, int, int] | None = None

        async def is_reached() -> bool:
            nonlocal load
            load = await self.load()
            return load[:2] == (running, waiting)

        # Without a pause: a tiny engine's load may stay for some milliseconds only.
        expected = f"{running} requests run and {waiting} wait"
        await until(is_reached, lambda: f"{expected}; the load is {load}", 10, interval_s=0)


async def all_of(stream: AsyncIterator[TokenChunk]) -> list[TokenChunk]:
    """The chunks of a stream that has no error."""
    return [chunk async for chunk in stream]


def tokens(chunks: Sequence[TokenChunk]) -> list[int]:
    """All tokens, in order."""
    return [token_id for chunk in chunks for token_id in chunk.token_ids]


async def error_of(stream: AsyncIterator[TokenChunk]) -> RequestError:
    """The error with which a stream ends, before any chunk."""
    try:
        async for chunk in stream:
            raise AssertionError(f"not refused: {chunk}")
    except RequestError as error:
        return error
    raise AssertionError("the stream ended without an error")
