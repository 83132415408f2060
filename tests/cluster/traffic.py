"""Steady requests from the client's machine, each of them accounted for: how long it waited, how it ended."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import httpx

from tests.cluster.machines import Machine

INTERVAL_S: Final = 0.4
"""Between two requests."""
NUM_TOKENS: Final = (8, 60)
"""Of an answer, from the shortest to the longest."""
TIMEOUT_S: Final = 150.0
"""No request may wait longer than the client does; one that does is a failure."""
_CONNECT_S: Final = 10.0


@dataclass
class Outcome:
    """One request.

    Attributes:
        started_at: when it was sent, in seconds of `time.monotonic`.
        num_tokens: asked for.
        url: of the proxy.
        first_token_s: until its first token; None: there was none.
        longest_pause_s: the longest time without a token, of any part of the answer.
        total_s: until its end.
        failure: why it failed; None: it got all of its tokens.
        num_pieces: chunks with tokens.
        rank: where it began.
    """

    started_at: float
    num_tokens: int
    url: str
    first_token_s: float | None = None
    longest_pause_s: float = 0.0
    total_s: float = 0.0
    failure: str | None = "never ended"
    num_pieces: int = 0
    rank: str | None = None


class Traffic:
    """Sends streams to proxies in turn until it is stopped.

    Attributes:
        outcomes: of all requests so far.
    """

    def __init__(self, *urls: str, interval_s: float = INTERVAL_S, seed: int = 0) -> None:
        self.outcomes: list[Outcome] = []
        self._urls = urls
        self._interval_s = interval_s
        self._random = random.Random(seed)
        self._stopped = threading.Event()

    @contextmanager
    def from_machine(self, client: Machine) -> Iterator[None]:
        """Send from there within the context, at whose end it waits for the last answers."""
        thread = threading.Thread(target=lambda: client.call(lambda: asyncio.run(self._send_all())))
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    @property
    def failures(self) -> Counter[str]:
        """How many requests failed, by cause."""
        return Counter(each.failure for each in self.outcomes if each.failure is not None)

    def summary(self) -> str:
        """One line: how many, how many failed by which cause, and the longest waits in seconds."""
        waits = sorted((each.longest_pause_s for each in self.outcomes), reverse=True)
        longest = " ".join(f"{wait:.1f}" for wait in waits[:8])
        return f"{len(self.outcomes)} requests, failed {dict(self.failures)}, longest waits {longest} s"

    def waiting(self, longer_than_s: float) -> list[Outcome]:
        """The requests that had a pause longer than that."""
        return [each for each in self.outcomes if each.longest_pause_s > longer_than_s]

    async def _send_all(self) -> None:
        timeout = httpx.Timeout(TIMEOUT_S, connect=_CONNECT_S)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=timeout, limits=limits) as http, asyncio.TaskGroup() as group:
            for url in itertools.cycle(self._urls):
                if self._stopped.is_set():
                    return
                group.create_task(self._send(http, url))
                await asyncio.sleep(self._interval_s)

    async def _send(self, http: httpx.AsyncClient, url: str) -> None:
        outcome = Outcome(time.monotonic(), self._random.randint(*NUM_TOKENS), url)
        self.outcomes.append(outcome)
        shared = [self._random.randrange(1000, 1008)] * 32
        own = self._random.choices(range(1000, 40_000), k=self._random.randint(4, 40))
        body = {
            "prompt": shared + own,
            "max_tokens": outcome.num_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        heard_at = outcome.started_at
        try:
            async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
                outcome.rank = response.headers.get("x-dp-rank")
                if response.status_code != 200:
                    text = (await response.aread()).decode(errors="replace")
                    outcome.failure = f"{response.status_code}: {_short(text)}"
                    return
                async for line in response.aiter_lines():
                    if not line:
                        continue
                    now = time.monotonic()
                    outcome.longest_pause_s = max(outcome.longest_pause_s, now - heard_at)
                    heard_at = now
                    data = line.removeprefix("data: ")
                    if data == "[DONE]":
                        outcome.failure = None
                    elif "error" in (piece := json.loads(data)):
                        outcome.failure = f"in the stream: {_short(json.dumps(piece))}"
                    else:
                        outcome.num_pieces += 1
                        if outcome.first_token_s is None:
                            outcome.first_token_s = now - outcome.started_at
        except httpx.HTTPError as error:
            outcome.failure = f"{type(error).__name__}: {error}"
        finally:
            now = time.monotonic()
            outcome.longest_pause_s = max(outcome.longest_pause_s, now - heard_at)
            outcome.total_s = now - outcome.started_at
        if outcome.failure == "never ended":
            outcome.failure = "the stream ended early"


def _short(text: str) -> str:
    try:
        error = json.loads(text)["error"]
        return f"{error['code']}: {error['message'][:120]}"
    except (ValueError, KeyError, TypeError):
        return text[:120]
