"""Clients, some of which disconnect: at once, while they wait, during the answer, or at its very end."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx

Phase = Literal["at_once", "waiting", "streaming", "at_the_end"]

HUNG = "hung"
"""The failure of a request that did not end in time."""
DONE: dict[str, Any] = {}
AT_ONCE_S = 0.01
"""Within this time a request is sent, parsed and hashed, and perhaps a router called."""
MAX_SAMPLES = 3
SHARED_PREFIXES = 8
"""Half of the prompts begin with one of these."""


@dataclass(frozen=True)
class Traffic:
    """What the clients do.

    Attributes:
        num_requests, num_clients: requests in all, and how many are in flight at most.
        aborting: share of the requests whose client disconnects, unless it was answered before.
        token_ids: the tokens of prompts.
        max_prompt, max_tokens: longest prompt and longest answer in tokens.
        end_within_s: a request that has not ended after this many seconds counts as hung.
        seed: of prompts and of the moments of disconnecting.
    """

    num_requests: int
    num_clients: int
    aborting: float
    token_ids: range
    max_prompt: int = 200
    max_tokens: int = 12
    end_within_s: float = 60.0
    seed: int = 1


@dataclass(frozen=True)
class Failure:
    """A request that got no whole answer, though its client stayed."""

    what: str
    at: float


@dataclass(frozen=True, order=True)
class Ended:
    """How a request ended, when (monotonic), and after how many seconds."""

    seconds: float
    at: float
    outcome: str


class Crowd:
    """Clients that send requests one after another.

    Attributes:
        outcomes: how many requests were `answered`, `aborted` and `failed`.
        aborted: how many clients disconnected, by phase.
        failures: every one with its monotonic time.
        longest: the request that took longest to any end.
    """

    def __init__(
        self, http: httpx.AsyncClient, traffic: Traffic, ended: Callable[[int], object] = lambda _: None
    ) -> None:
        """`ended` is called after each request with how many have ended so far."""
        self._http = http
        self._traffic = traffic
        self._ended = ended
        self._rng = random.Random(traffic.seed)
        self._prefixes = [self._tokens(traffic.max_prompt // 2) for _ in range(SHARED_PREFIXES)]
        self._mean_latency_s = 0.1
        self.outcomes: Counter[str] = Counter()
        self.aborted: Counter[Phase] = Counter()
        self.failures: list[Failure] = []
        self.longest = Ended(0.0, 0.0, "")

    async def run(self) -> None:
        """Send everything; returns when every request has ended."""
        numbers = iter(range(self._traffic.num_requests))
        async with asyncio.TaskGroup() as clients:
            for _ in range(self._traffic.num_clients):
                clients.create_task(self._client(numbers))

    async def _client(self, numbers: Iterator[int]) -> None:
        for _ in numbers:
            phase = self._phase()
            body = self._body(streams=phase in ("streaming", "at_the_end"))
            started = time.monotonic()
            try:
                async with asyncio.timeout(self._traffic.end_within_s):
                    outcome = await self._ask(body, phase)
            except (httpx.HTTPError, TimeoutError, AnswerBrokeOffError) as error:
                outcome = "failed"
                self.failures.append(Failure(_what(error), time.monotonic()))
            self._record(outcome, time.monotonic() - started)

    def _record(self, outcome: str, seconds: float) -> None:
        self.outcomes[outcome] += 1
        self.longest = max(self.longest, Ended(seconds, time.monotonic(), outcome))
        if outcome == "answered":
            self._mean_latency_s += (seconds - self._mean_latency_s) / 32
        self._ended(self.outcomes.total())

    async def _ask(self, body: dict[str, Any], phase: Phase | None) -> str:
        """`answered` or `aborted`; raises `AnswerBrokeOffError` for an answer that breaks off."""
        patience_s = {
            "at_once": self._rng.uniform(0, AT_ONCE_S),
            # Somewhere between sending and the end: in a queue, in prefill, in decoding.
            "waiting": self._rng.uniform(0, self._mean_latency_s),
        }.get(phase or "")
        # Counted over all samples.
        max_events = self._rng.randrange(1, body["max_tokens"] + 1) if phase == "streaming" else None
        try:
            async with asyncio.timeout(patience_s):
                is_whole = await self._answer(body, max_events, phase == "at_the_end")
        except TimeoutError:
            if patience_s is None:  # the whole request's
                raise
            is_whole = False
        if is_whole:
            return "answered"
        assert phase is not None
        self.aborted[phase] += 1
        return "aborted"

    async def _answer(self, body: dict[str, Any], max_events: int | None, leaves_at_finish: bool) -> bool:
        """Whether the answer was read to its end."""
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                raise AnswerBrokeOffError(f"HTTP {response.status_code}: {_reason(await response.aread())}")
            if not body["stream"]:
                await response.aread()
                return True
            num_events = 0
            async for event in _events(response):
                if event == DONE:
                    return True
                if "error" in event:
                    raise AnswerBrokeOffError(f"error event: {event['error']['code']}")
                num_events += 1
                finishes = any(choice["finish_reason"] for choice in event["choices"])
                if num_events == max_events or (leaves_at_finish and finishes):
                    return False
        raise AnswerBrokeOffError("the stream ended without [DONE]")

    def _phase(self) -> Phase | None:
        if self._rng.random() >= self._traffic.aborting:
            return None
        return self._rng.choice(("at_once", "waiting", "streaming", "at_the_end"))

    def _body(self, *, streams: bool) -> dict[str, Any]:
        prefix = self._rng.choice(self._prefixes) if self._rng.random() < 0.5 else []
        return {
            "prompt": prefix + self._tokens(self._rng.randrange(1, self._traffic.max_prompt - len(prefix))),
            "max_tokens": self._rng.randrange(1, self._traffic.max_tokens),
            "ignore_eos": True,
            "stream": streams or self._rng.random() < 0.5,
            "n": self._rng.randrange(2, MAX_SAMPLES + 1) if self._rng.random() < 0.2 else 1,
        }

    def _tokens(self, count: int) -> list[int]:
        return self._rng.choices(self._traffic.token_ids, k=count)


class AnswerBrokeOffError(Exception):
    """A request got no whole answer. The message has the reason."""


def _what(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return HUNG
    return str(error) if isinstance(error, AnswerBrokeOffError) else type(error).__name__


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream, and `DONE`; httpx's own lines also end at what texts may hold, as U+0085."""
    rest = b""
    async for piece in response.aiter_bytes():
        *events, rest = (rest + piece).split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data: ")
            yield DONE if data == b"[DONE]" else json.loads(data)


def _reason(body: bytes) -> str:
    """An error's code, or the beginning of a body that has none."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return body.decode(errors="replace")[:80]
