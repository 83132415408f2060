"""The client: streaming chat requests over HTTP, and whole conversations in a closed loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx

from benchmarks.serving.summary import Reply
from benchmarks.serving.workload import Conversation, Message

TIMEOUT_S = 300.0
"""Longest silence on one connection."""


class RequestFailedError(Exception):
    """A request got no whole answer. The message says what came instead."""


class ChatClient:
    """Requests answers of a fixed length, greedily, and times them.

    Args:
        base_url: the server's.
        answer_tokens: tokens of each answer; the model's own end is ignored.
        concurrency: requests in flight at most; the clock of one that waits starts when it is sent.
    """

    def __init__(self, base_url: str, *, answer_tokens: int, concurrency: int) -> None:
        self._http = httpx.AsyncClient(base_url=base_url, timeout=TIMEOUT_S)
        self._answer_tokens = answer_tokens
        self._slots = asyncio.Semaphore(concurrency)

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def chat(
        self, messages: Sequence[Message], *, cache_salt: str | None = None, rank: int | None = None
    ) -> Reply:
        """One answer.

        Args:
            messages: the conversation so far.
            cache_salt: keeps the prompt's cached blocks apart from those of other salts.
            rank: the only rank that may answer.

        Raises:
            RequestFailedError: an error, or an answer that isn't whole.
        """
        body = {
            "messages": messages,
            "max_tokens": self._answer_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_salt": cache_salt,
            "routed_dp_rank": rank,
        }
        async with self._slots:
            return await self._stream(body)

    async def get(self, path: str) -> Any:
        """The JSON at `path`."""
        response = await self._http.get(path)
        return response.raise_for_status().json()

    async def _stream(self, body: Mapping[str, Any]) -> Reply:
        answer = _Answer()
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                text = (await response.aread()).decode(errors="replace")
                raise RequestFailedError(f"HTTP {response.status_code}: {text}")
            async for line in response.aiter_lines():
                answer.take(line)
        return answer.reply(self._answer_tokens, int(response.headers["x-dp-rank"]))


async def hold_conversation(
    client: ChatClient, conversation: Conversation, answered: Callable[[], object]
) -> list[Reply]:
    """All turns of one user: each waits for the last answer and contains it; calls `answered` after each."""
    replies: list[Reply] = []
    for _ in conversation.questions:
        answers = [reply.text for reply in replies]
        replies.append(await client.chat(conversation.messages(answers)))
        answered()
    return replies


class _Answer:
    """An answer as it arrives; its clock runs from construction on."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._first_s: float | None = None
        self._text: list[str] = []
        self._usage: dict[str, Any] | None = None
        self._done = False

    def take(self, line: str) -> None:
        """One line of the event stream. First content, or an end without any, stops the clock of the TTFT."""
        data = line.removeprefix("data: ")
        if not data:
            return
        if data == "[DONE]":
            self._done = True
            return
        event = json.loads(data)
        if "error" in event:
            raise RequestFailedError(f"the answer broke off: {event['error']}")
        self._usage = event.get("usage") or self._usage
        for choice in event["choices"]:
            text = choice["delta"].get("content", "")
            if self._first_s is None and (text or choice["finish_reason"]):
                self._first_s = time.perf_counter() - self._started
            self._text.append(text)

    def reply(self, answer_tokens: int, rank: int) -> Reply:
        """The whole answer, which must have `answer_tokens`."""
        if not self._done or self._usage is None or self._first_s is None:
            raise RequestFailedError("the stream ended before the answer did")
        if self._usage["completion_tokens"] != answer_tokens:
            raise RequestFailedError(f"asked for {answer_tokens} tokens, got this usage: {self._usage}")
        return Reply(
            text="".join(self._text),
            ttft_s=self._first_s,
            latency_s=time.perf_counter() - self._started,
            prompt_tokens=self._usage["prompt_tokens"],
            cached_tokens=self._usage["prompt_tokens_details"]["cached_tokens"],
            rank=rank,
        )
