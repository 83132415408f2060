"""The outputs of several prompts as one stream.

    prompts ──▶ up to MAX_AT_ONCE tasks, each serves one prompt after another ──▶ chunks, as they come

A choice's number is that of its prompt times the samples of a prompt, plus the sample's own. One prompt that
can't be served ends the whole stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

from app.api.openai.prompts import of_prompt
from app.api.openai.requests import TextRequest
from app.deployments.background import detached_task
from app.deployments.ingress.batches.batch_report import BatchReport
from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.deployments.ingress.misses.cache_report import CacheReport
from app.deployments.ingress.request_reader import PreparedRequest
from app.errors import RequestError
from app.generation import TokenChunk

MAX_AT_ONCE = 32
"""Prompts of one request that are served at once; the others wait for them here, not in the ranks' queues."""
MAX_HELD = 64
"""Chunks that wait for the client; then the ranks' wait too."""

Prepared = PreparedRequest[TextRequest]
Begin = Callable[[Prepared], Awaitable[tuple[RankStream, CacheReport]]]


class BatchStream:
    """The chunks of all prompts; see `ChunkStream`. Start it first.

    Args:
        begin: has a prompt served.
        requests: one for each prompt, with the same number of samples.

    Attributes:
        rank: the rank that began.
        report: what is told of all prompts.
    """

    def __init__(self, begin: Begin, requests: Sequence[Prepared]) -> None:
        self.rank = -1
        self.report = BatchReport()
        self._begin = begin
        self._waiting = deque(enumerate(requests))
        self._items: asyncio.Queue[TokenChunk | Exception | None] = asyncio.Queue(MAX_HELD)
        self._tasks: list[asyncio.Task[None]] = []
        self._first: TokenChunk | None = None

    async def start(self) -> None:
        """Begin, and wait for the first tokens of any prompt. Raises `RequestError` if there are none."""
        num_tasks = min(MAX_AT_ONCE, len(self._waiting))
        self._tasks = [detached_task(self._work()) for _ in range(num_tasks)]
        self._num_working = num_tasks
        try:
            self._first = await self._next()
        except BaseException:
            self.cancel()
            raise

    async def __aiter__(self) -> AsyncIterator[TokenChunk]:
        chunk = self._first
        while chunk is not None:
            yield chunk
            chunk = await self._next()

    def cancel(self) -> None:
        """Abort the prompts that haven't ended."""
        for task in self._tasks:
            task.cancel()

    async def _next(self) -> TokenChunk | None:
        """The next chunk; None when all prompts have ended."""
        while self._num_working:
            item = await self._items.get()
            if isinstance(item, Exception):
                raise item
            if item is not None:
                return item
            self._num_working -= 1
        return None

    async def _work(self) -> None:
        while self._waiting:
            place, request = self._waiting.popleft()
            try:
                await self._serve(place, request)
            except RequestError as error:
                await self._items.put(of_prompt(error, place))
                return
            except Exception as error:
                await self._items.put(error)
                return
        await self._items.put(None)

    async def _serve(self, place: int, request: Prepared) -> None:
        stream, report = await self._begin(request)
        try:
            if self.rank < 0:
                self.rank = stream.rank
            self.report.begin(stream.rank, report)
            async for chunk in stream:
                await self._items.put(replace(chunk, index=place * request.body.n + chunk.index))
        finally:
            stream.cancel()
