"""Clients that keep a graph busy: long streams, and requests that wait behind them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import httpx

from tests.support.deadlines import until
from tests.support.graph.serve_config import Json
from tests.support.graph.serve_graph import ServeGraph

LONG = {"max_tokens": 4000, "ignore_eos": True, "temperature": 0}
"""Twenty seconds or more on the tiny model, whose caches hold 4,096 tokens."""


class Stream:
    """One streaming request.

    Attributes:
        rank: where it runs.
        num_pieces: chunks of text so far.
        text: what they say.
        answer_id: the answer's `id`.
        usage: of the whole answer, if it was asked for and has come.
        ended: its last message: `[DONE]`, or an error's code; None until then.
        message: the error's message.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.rank = int(response.headers["x-dp-rank"])
        self.num_pieces = 0
        self.text = ""
        self.answer_id = ""
        self.usage: Json | None = None
        self.ended: str | None = None
        self.message = ""
        self._response = response
        self.reading = asyncio.create_task(self._read())

    async def disconnect(self) -> None:
        """Close the connection in the middle of the answer."""
        self.reading.cancel()
        await asyncio.wait([self.reading])
        await self._response.aclose()

    async def _read(self) -> None:
        async for line in self._response.aiter_lines():
            if not line:
                continue
            data = line.removeprefix("data: ")
            event = {} if data == "[DONE]" else json.loads(data)
            error = event.get("error", {})
            if data == "[DONE]" or error:
                self.ended = error.get("code", data)
                self.message = error.get("message", "")
            elif event["choices"]:
                self.answer_id = event["id"]
                self.num_pieces += 1
                self.text += event["choices"][0]["text"]
            else:
                self.usage = event["usage"]
        await self._response.aclose()


class Streams:
    """Opens streams and sends requests; disconnects from all that still run at the end."""

    def __init__(self, graph: ServeGraph) -> None:
        limits = httpx.Limits(max_connections=None)
        self.http = httpx.AsyncClient(base_url=graph.url, timeout=120, limits=limits)
        self.sent: list[asyncio.Task[httpx.Response]] = []
        self._open: list[Stream] = []
        self._num_prompts = 0

    async def __aenter__(self) -> Streams:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()
        await self.http.aclose()

    async def open(self, count: int, rank: int | None = None, **fields: Any) -> list[Stream]:
        """`count` long streams, each past its first token; on `rank` if one is given."""
        requests = [self._request(rank, LONG | {"stream": True} | fields) for _ in range(count)]
        responses = await asyncio.gather(*(self.http.send(request, stream=True) for request in requests))
        assert [response.status_code for response in responses] == [200] * count
        streams = [Stream(response) for response in responses]
        self._open += streams
        await until(lambda: all(stream.num_pieces > 1 for stream in streams), "text on every stream")
        return streams

    def send(self, count: int = 1, rank: int | None = None, **fields: Any) -> None:
        """`count` requests for answers in one piece, in the background; kept in `sent`."""
        for _ in range(count):
            request = self._request(rank, {"max_tokens": 4} | fields)
            self.sent.append(asyncio.create_task(self.http.send(request)))

    @asynccontextmanager
    async def arriving(self, every_s: float = 0.1) -> AsyncIterator[None]:
        """A short request every `every_s` seconds, until the block ends."""
        sending = asyncio.create_task(self._send_forever(every_s))
        try:
            yield
        finally:
            sending.cancel()
            await asyncio.wait([sending])

    async def open_while_taken(self, **fields: Any) -> list[Stream]:
        """Open a stream a second until one is answered with 404, and return those before it.

        Each has a connection of its own: HAProxy keeps an open one with the ingress that it had.
        """
        opened: list[Stream] = []
        while True:
            request = self._request(None, LONG | {"stream": True} | fields)
            request.headers["Connection"] = "close"
            response = await self.http.send(request, stream=True)
            if response.status_code == 404:
                await response.aclose()
                return opened
            assert response.status_code == 200, response.status_code
            opened.append(Stream(response))
            self._open.append(opened[-1])
            await asyncio.sleep(1)

    async def disconnect(self) -> None:
        """Close every connection, answered or not."""
        for task in self.sent:
            task.cancel()
        if self.sent:
            await asyncio.wait(self.sent)
        for stream in self._open:
            await stream.disconnect()
        self.sent, self._open = [], []

    async def load(self, rank: int) -> Json:
        """The load that `rank` reports."""
        info = (await self.http.get("/server_info")).json()
        load: Json = info["internal_states"][rank]["load"]
        return load

    async def until_load(self, rank: int, **expected: int) -> None:
        """Wait until `rank` reports these numbers."""

        async def is_reported() -> bool:
            load = await self.load(rank)
            return load | expected == load

        await until(is_reported, f"rank {rank} at {expected}")

    async def _send_forever(self, every_s: float) -> None:
        while True:
            self.send()
            await asyncio.sleep(every_s)

    def _request(self, rank: int | None, fields: Json) -> httpx.Request:
        self._num_prompts += 1
        body = {"prompt": [time.time_ns() % 40_000 + 100, self._num_prompts, 5]} | fields
        headers = {} if rank is None else {"X-Data-Parallel-Rank": str(rank)}
        return self.http.build_request("POST", "/v1/completions", json=body, headers=headers)
