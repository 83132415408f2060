"""The clients: each sends one request after another, and sees what comes of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import httpx

from benchmarks.chaos.accounting import Ledger, Result
from benchmarks.chaos.answers import Answer, AnswerParts, difference
from benchmarks.chaos.requests import Ask

END_WITHIN_S = 120.0
"""A request that has not ended by then hangs."""

Json = Mapping[str, Any]


class NoAnswerError(Exception):
    """A request got no whole answer, though its client stayed.

    Attributes:
        cause: in a few words.
        by_ingress: whether the ingress itself said so, and so was there.
        retry_after: whether the answer says when to try again.
    """

    def __init__(self, cause: str, *, by_ingress: bool, retry_after: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.by_ingress = by_ingress
        self.retry_after = retry_after


class Traffic:
    """Clients of one graph.

    Args:
        http: sends.
        expected: the answers of comparable requests, by their names.
    """

    def __init__(self, http: httpx.AsyncClient, expected: Mapping[str, Answer]) -> None:
        self._http = http
        self._expected = expected

    async def run(
        self,
        num_clients: int,
        draw: Callable[[], Ask],
        until: asyncio.Event,
        ledger: Ledger,
        may_have_resumed: Callable[[float], bool],
    ) -> None:
        """Send requests; returns when all that were sent have ended.

        Args:
            num_clients: requests at a time.
            draw: gives the next request.
            until: when it is set, nothing more is sent.
            ledger: takes every result.
            may_have_resumed: whether a request that was sent at this time may have gone on at another rank.
        """

        async def client() -> None:
            while not until.is_set():
                result = await self.send(draw())
                ledger.take(result)
                if result.answer is not None and may_have_resumed(result.sent_at):
                    ledger.num_resumed += await self._was_resumed(result.answer.id)

        async with asyncio.TaskGroup() as clients:
            for _ in range(num_clients):
                clients.create_task(client())

    async def send_all(self, asks: Iterable[Ask]) -> dict[str, Answer]:
        """The answers to `asks`, one after another, by their names.

        Raises:
            NoAnswerError: one got no whole answer.
        """
        answers = {}
        for ask in asks:
            result = await self.send(ask)
            if result.answer is None:
                raise NoAnswerError(f"{ask.name}: {result.cause}", by_ingress=False)
            answers[ask.name] = result.answer
        return answers

    async def send(self, ask: Ask) -> Result:
        """Send one request, and what came of it."""
        clock = _Clock()
        try:
            async with asyncio.timeout(END_WITHIN_S):
                answer = await self._leave_or_read(ask, clock)
        except TimeoutError:
            return clock.result(ask, "failed", f"hung: no end within {END_WITHIN_S:.0f} s", by_ingress=True)
        except NoAnswerError as error:
            ended = "refused" if error.retry_after else "failed"
            return clock.result(ask, ended, error.cause, by_ingress=error.by_ingress)
        except httpx.HTTPError as error:
            return clock.result(ask, "failed", f"connection: {type(error).__name__}")
        if answer is None:
            return clock.result(ask, "aborted", ask.leaves or "")
        if (
            ask.comparable
            and (expected := self._expected.get(ask.name))
            and (what := difference(expected, answer))
        ):
            return replace(
                clock.result(ask, "failed", f"another answer: {what}", by_ingress=True), answer=answer
            )
        return replace(clock.result(ask, "ok"), answer=answer)

    async def _was_resumed(self, answer_id: str) -> bool:
        """Whether a router's receipt says that the request went on at another rank."""
        try:
            response = await self._http.get(f"/router/decisions/{answer_id}", timeout=10)
        except httpx.HTTPError:
            return False
        if response.status_code != httpx.codes.OK:
            return False
        return any(attempt["resumed"] for attempt in response.json()["attempts"])

    async def _leave_or_read(self, ask: Ask, clock: _Clock) -> Answer | None:
        """The whole answer; None when the client left before its end."""
        if ask.leaves not in ("at_once", "waiting"):
            return await self._read(ask, clock)
        leaving = asyncio.timeout(ask.patience_s)
        try:
            async with leaving:
                return await self._read(ask, clock)
        except TimeoutError:
            if not leaving.expired():
                raise
            return None

    async def _read(self, ask: Ask, clock: _Clock) -> Answer | None:
        parts = AnswerParts(ask.api)
        async with self._http.stream("POST", ask.path, json=ask.payload, headers=ask.headers) as response:
            if response.status_code != httpx.codes.OK:
                raise _refusal(response, await response.aread())
            if not ask.streams:
                parts.take(json.loads(await response.aread()))
            elif not await self._read_events(ask, response, parts, clock):
                return None
        if not parts.answer.is_whole:
            raise NoAnswerError("an answer with an end that isn't whole", by_ingress=True)
        return parts.answer

    async def _read_events(
        self, ask: Ask, response: httpx.Response, parts: AnswerParts, clock: _Clock
    ) -> bool:
        """Whether the client stayed until the end."""
        num_events = 0
        async for data in _events(response):
            if data == b"[DONE]":
                return True
            event = json.loads(data)
            if "error" in event:
                raise NoAnswerError(f"error event: {_code(event)}", by_ingress=True)
            clock.tick()
            parts.take(event)
            num_events += 1
            if ask.leaves == "streaming" and num_events >= ask.max_events:
                return False
        raise NoAnswerError("connection: the stream ended without [DONE]", by_ingress=False)


class _Clock:
    """One request's times; it runs from construction on."""

    def __init__(self) -> None:
        self._sent_at = time.monotonic()
        self._last_at: float | None = None
        self._first_token_s: float | None = None
        self._longest_pause_s = 0.0

    def tick(self) -> None:
        """An event came."""
        now = time.monotonic()
        if self._last_at is None:
            self._first_token_s = now - self._sent_at
        else:
            self._longest_pause_s = max(self._longest_pause_s, now - self._last_at)
        self._last_at = now

    def result(self, ask: Ask, ended: Any, cause: str = "", *, by_ingress: bool = False) -> Result:
        """The request ends now, so."""
        return Result(
            name=ask.name,
            ended=ended,
            cause=cause,
            by_ingress=by_ingress,
            sent_at=self._sent_at,
            ended_at=time.monotonic(),
            first_token_s=self._first_token_s,
            longest_pause_s=self._longest_pause_s,
        )


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """The data of each event; httpx's own lines also end at what texts may hold, as U+0085."""
    rest = b""
    async for piece in response.aiter_bytes():
        *events, rest = (rest + piece).split(b"\n\n")
        for event in events:
            yield event.removeprefix(b"data: ")


def _refusal(response: httpx.Response, body: bytes) -> NoAnswerError:
    """What an answer other than 200 says. Only an ingress answers with an error as JSON."""
    try:
        error = json.loads(body)
        code = _code(error)
    except (ValueError, LookupError, TypeError):
        text = body.decode(errors="replace")[:120]
        return NoAnswerError(f"HTTP {response.status_code}: {text!r}", by_ingress=False)
    may_retry = response.status_code == httpx.codes.TOO_MANY_REQUESTS and "retry-after" in response.headers
    return NoAnswerError(f"HTTP {response.status_code}: {code}", by_ingress=True, retry_after=may_retry)


def _code(body: Json) -> str:
    error = body["error"]
    return f"{error.get('code') or error.get('type')}: {error['message'][:200]}"
