"""HTTP to one worker: short questions, and answers that stream as server-sent events.

Connections stay open between requests, shorter than servers keep theirs: one that the server is about to
close may take a request with it. Every wait has a limit.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec

from app.engine.remote.api.refusals import refusal
from app.errors import EngineFailedError, WireError, WorkerError, WorkerSlowError
from app.events.schema import DECODE_FAULTS

CONNECT_S = 2.0
ASK_S = 2.0
"""Of a short question, connecting included; as long as SGLang's router waits for `/server_info`."""
FIRST_EVENT_S = 600.0
"""How long a worker may compute and queue before the first token. One that doesn't answer questions any more
is noticed much earlier, by the poll."""
TCP_QUICKACK = 12
"""Linux's number, which `socket` has on Linux only."""
IDLE_S = 120.0
"""Between two tokens: a preempted request may wait for that long."""
KEEP_ALIVE_S = 4.0
"""uvicorn, which most workers run, closes idle connections after 5 s."""
MAX_ANSWER_BYTES = 16 * 2**20
MAX_ERROR_BYTES = 2**20
MAX_EVENT_BYTES = 8 * 2**20

_EVENT_HEADERS = {
    "content-type": "application/json",
    "accept": "text/event-stream",
    "accept-encoding": "identity",  # events are read as they come over the wire
}
_FAULTS = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL)


@dataclass(frozen=True, slots=True)
class Answer:
    """A short answer.

    Attributes:
        path: what was asked for, for errors.
        status: HTTP's.
        body: at most `MAX_ANSWER_BYTES`.
    """

    path: str
    status: int
    body: bytes

    @property
    def is_ok(self) -> bool:
        """Whether it was answered as asked."""
        return 200 <= self.status < 300

    def json(self) -> dict[str, Any]:
        """The JSON object in it. Raises `WorkerError` if it holds none."""
        try:
            content = msgspec.json.decode(self.body)
        except DECODE_FAULTS:
            raise WorkerError(f"{self.path}: the answer is not JSON") from None
        if not isinstance(content, dict):
            raise WorkerError(f"{self.path}: a JSON object is needed, not a {type(content).__name__}")
        return content


class WorkerHttp:
    """A client of the worker at `url`, with its key if it wants one; opened and closed on one event loop."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        limits = httpx2.Limits(
            max_connections=None, max_keepalive_connections=256, keepalive_expiry=KEEP_ALIVE_S
        )
        # No proxy of the environment's: workers are in the same network, and a proxy would buffer streams.
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._client = httpx2.AsyncClient(limits=limits, trust_env=False, headers=headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    @property
    def host(self) -> str:
        """The URL's host; an IPv6 address is in brackets."""
        host = httpx2.URL(self.url).host
        return f"[{host}]" if ":" in host else host

    async def ask(self, path: str, *, method: str = "GET", timeout_s: float = ASK_S) -> Answer:
        """A short answer, whatever its status.

        Raises:
            WorkerSlowError: there is none within `timeout_s` seconds.
            WorkerError: the worker can't be reached, or the answer is longer than allowed.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask(path, method, httpx2.Timeout(timeout_s, connect=CONNECT_S))
        except TimeoutError:
            raise WorkerSlowError(f"{path}: no answer within {timeout_s:g} s") from None
        except httpx2.TimeoutException as error:
            raise WorkerSlowError(f"{path}: {_shown(error)}") from None
        except _FAULTS as error:
            raise WorkerError(f"{path}: {_shown(error)}") from None

    async def _ask(self, path: str, method: str, limit: httpx2.Timeout) -> Answer:
        body = bytearray()
        async with self._client.stream(method, self.url + path, timeout=limit) as response:
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise WorkerError(f"{path}: the answer is longer than {MAX_ANSWER_BYTES} bytes")
        return Answer(path, response.status_code, bytes(body))

    async def events(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event that answers a POST, as it comes. Closing it ends the request.

        Raises:
            RequestError: the worker refuses the request; see `refusal`.
            EngineFailedError: it can't be reached, the connection breaks, or nothing comes for too long.
        """
        limit = httpx2.Timeout(FIRST_EVENT_S, connect=CONNECT_S)
        headers = {**_EVENT_HEADERS, **headers}
        url = self.url + path
        try:
            request = self._client.stream("POST", url, content=body, headers=headers, timeout=limit)
            async with request as response:
                if response.status_code != 200:
                    answer = await _start_of(response)
                    raise refusal(url, response.status_code, answer, response.headers)
                async with aclosing(_events_in(response)) as events:
                    async for data in events:
                        yield data
        except (TimeoutError, WireError, *_FAULTS) as error:
            raise EngineFailedError(f"{url}: {_shown(error)}") from None


async def _events_in(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """The data of each event; other fields, and comments, are none of ours.

    A server that leaves Nagle's algorithm on holds the next small event back until the last one, or its own
    headers, are acknowledged, which takes 40 ms by default: so they are acknowledged at once.

    Raises:
        TimeoutError: nothing came for too long.
        WireError: an event is too long.
    """
    buffer, limit_s = bytearray(), FIRST_EVENT_S
    parts, connection = aiter(response.aiter_raw()), _socket_of(response)
    while True:
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, TCP_QUICKACK, 1)
        try:
            async with asyncio.timeout(limit_s):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TimeoutError(f"nothing came for {limit_s:g} s") from None
        buffer += part
        if len(buffer) > MAX_EVENT_BYTES:
            raise WireError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        if b"\n" not in part:
            continue  # a long line in small parts is looked through once
        *lines, rest = bytes(buffer).split(b"\n")
        buffer[:] = rest
        for line in lines:
            if line.startswith(b"data:"):
                limit_s = IDLE_S
                yield line[5:].strip()


async def _start_of(response: httpx2.Response) -> bytes:
    """As much of an error's body as comes soon, and as a message may need: the status says most."""
    body = bytearray()
    with suppress(TimeoutError, *_FAULTS):
        async with asyncio.timeout(ASK_S):
            async for part in response.aiter_bytes():
                body += part
                if len(body) >= MAX_ERROR_BYTES:
                    break
    return bytes(body[:MAX_ERROR_BYTES])


def _socket_of(response: httpx2.Response) -> socket.socket | None:
    """The connection's socket, on systems where it acknowledges at once if it is told to."""
    stream = response.extensions.get("network_stream")
    found = stream.get_extra_info("socket") if stream is not None and sys.platform == "linux" else None
    return found if hasattr(found, "setsockopt") else None


def _shown(error: Exception) -> str:
    """Some of httpx's errors have no message."""
    return str(error) or type(error).__name__
