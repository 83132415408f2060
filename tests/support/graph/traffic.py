"""Clients whose every answer must be whole: long streams, one after another, and short requests meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
import time
from types import TracebackType

import httpx

from tests.support.graph.serve_config import Json
from tests.support.graph.serve_graph import ServeGraph

STREAM_TOKENS = 600
"""Some five seconds on the tiny model."""
SHORT_PAUSE_S = 0.2
"""Between two short requests: however slow the machine is, there is only one at a time."""


class Traffic:
    """Sends from its beginning until its end, and then waits for the last answers.

    Args:
        graph: where to.
        num_streams: how many are open at any time.

    Attributes:
        failures: what was wrong with answers, in words; empty when nothing was.
        num_streams, num_shorts: answered so far.
        longest_pause_s: between two pieces of one stream.
        longest_wait_s: of a short request, or of a stream for its first piece.
    """

    def __init__(self, graph: ServeGraph, num_streams: int) -> None:
        self.failures: list[str] = []
        self.num_streams = 0
        self.num_shorts = 0
        self.longest_pause_s = 0.0
        self.longest_wait_s = 0.0
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(base_url=graph.url, timeout=60, limits=limits)
        self._width = num_streams
        self._is_ending = False
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return (
            f"{self.num_streams} streams, pauses of up to {self.longest_pause_s:.2f} s; "
            f"{self.num_shorts} short requests; waits of up to {self.longest_wait_s:.2f} s; "
            f"failures: {self.failures}"
        )

    async def __aenter__(self) -> Traffic:
        self._tasks = [asyncio.create_task(self._stream_on()) for _ in range(self._width)]
        self._tasks.append(asyncio.create_task(self._send_shorts()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_ending = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=error is not None)
        await self._http.aclose()

    async def _stream_on(self) -> None:
        while not self._is_ending:
            began = time.monotonic()
            try:
                fault = await self._stream()
            except httpx.HTTPError as broken:
                fault = repr(broken)
            self.num_streams += 1
            if fault is not None:
                self.failures.append(f"stream after {time.monotonic() - began:.1f} s: {fault}")

    async def _stream(self) -> str | None:
        """What was wrong with one stream."""
        body = _body(STREAM_TOKENS) | {"stream": True, "stream_options": {"include_usage": True}}
        usage: Json | None = None
        last, is_first = time.monotonic(), True
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                return f"{response.status_code} {(await response.aread()).decode()}"
            async for line in response.aiter_lines():
                self._count(time.monotonic() - last, is_first=is_first)
                last, is_first = time.monotonic(), False
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    return _fault(usage, STREAM_TOKENS)
                event: Json = json.loads(data) if data else {}
                if "error" in event:
                    return str(event["error"])
                usage = event.get("usage") or usage
        return "it ended without [DONE]"

    def _count(self, waited_s: float, *, is_first: bool) -> None:
        if is_first:
            self.longest_wait_s = max(self.longest_wait_s, waited_s)
        else:
            self.longest_pause_s = max(self.longest_pause_s, waited_s)

    async def _send_shorts(self) -> None:
        while not self._is_ending:
            await self._short()
            await asyncio.sleep(SHORT_PAUSE_S)

    async def _short(self) -> None:
        began = time.monotonic()
        try:
            response = await self._http.post("/v1/completions", json=_body(4))
            fault = _fault(response.json()["usage"], 4) if response.status_code == 200 else response.text
        except httpx.HTTPError as broken:
            fault = repr(broken)
        waited = time.monotonic() - began
        self.num_shorts += 1
        self.longest_wait_s = max(self.longest_wait_s, waited)
        if fault is not None:
            self.failures.append(f"short request after {waited:.1f} s: {fault}")


def _body(num_tokens: int) -> Json:
    prompt = random.choices(range(1000, 40_000), k=20)
    return {"prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0}


def _fault(usage: Json | None, num_tokens: int) -> str | None:
    """What is wrong with the usage of a whole answer."""
    got = (usage or {}).get("completion_tokens")
    return None if got == num_tokens else f"{got} tokens instead of {num_tokens}"
