"""What the two APIs for generation share: a request to a worker, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from app.engine.resuming import cannot_resume, check_earlier_outputs
from app.errors import InvalidRequestError, PromptTooLongError, WireError
from app.generation import GenerateRequest, SamplingParams, TokenChunk


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """One request as it goes to the worker.

    Attributes:
        request_id: names it there.
        token_ids: the prompt, with earlier output behind it if it has some.
        params: `max_tokens` is what the worker's context leaves.
        n, priority, cache_salt: see `GenerateRequest`.
        num_cached_tokens: of the prompt, as far as is known before the worker says it.
    """

    request_id: str
    token_ids: list[int]
    params: SamplingParams
    n: int
    priority: int
    cache_salt: str | None
    num_cached_tokens: int


class Answer(Protocol):
    """Reads one request's events."""

    def take(self, data: bytes) -> Iterator[TokenChunk]:
        """The chunks in one event; none in one that says only something else.

        Raises:
            RequestError: the worker ended the request with an error.
            WireError: not what the API allows.
        """
        ...


class AnswerCheck:
    """Holds what a worker answers against what it was asked for: everything behind it relies on that.

    Attributes:
        is_over: every sample has ended.
    """

    def __init__(self, request: WorkerRequest) -> None:
        self.is_over = False
        self._num_prompt_tokens = len(request.token_ids)
        self._most = request.params.max_tokens
        self._num_tokens = dict.fromkeys(range(request.n), 0)
        """Of each sample that goes on."""

    def checked(self, chunk: TokenChunk) -> TokenChunk:
        """The chunk, whose prompt is the one that was sent.

        Raises:
            WireError: of a sample that doesn't exist or has ended, too many tokens, or no token ids.
        """
        index, token_ids = chunk.index, chunk.token_ids
        if index not in self._num_tokens:
            raise WireError(f"tokens of sample {index}, which has ended or doesn't exist")
        self._num_tokens[index] += len(token_ids)
        if (count := self._num_tokens[index]) > self._most:
            raise WireError(f"{count} tokens of sample {index}; {self._most} were asked for")
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < 2**32:
            raise WireError(f"token ids from {min(token_ids)} to {max(token_ids)}; allowed: 0 to {2**32 - 1}")
        if chunk.finish_reason is not None:
            del self._num_tokens[index]
            self.is_over = not self._num_tokens
        num_cached = min(max(0, chunk.num_cached_tokens), self._num_prompt_tokens)
        return replace(chunk, num_prompt_tokens=self._num_prompt_tokens, num_cached_tokens=num_cached)


class GenerateApi(Protocol):
    """One way to have a worker generate.

    Attributes:
        path: what is posted to.
    """

    path: str

    def body(self, request: WorkerRequest) -> bytes:
        """The request as JSON.

        Raises:
            InvalidRequestError: a field, which it names, is none that the worker can honour.
        """
        ...

    def headers(self) -> Mapping[str, str]:
        """Pin the request to its rank."""
        ...

    def answer(self, request: WorkerRequest) -> Answer:
        """Reads what comes back."""
        ...


def worker_requests(
    request: GenerateRequest, max_model_len: int, num_cached_tokens: int
) -> dict[int, WorkerRequest]:
    """What `request` asks of the worker: one request, or one for each sample that goes on, by its index.

    Without earlier output, the one request stands under 0, and its answer tells samples apart.
    `num_cached_tokens` of the prompt are believed to be cached.

    Raises:
        InvalidRequestError: no prompt, its logprobs are wanted, or earlier output can't go on as the same
            request.
        PromptTooLongError: the context leaves no room for output.
    """
    if not request.prompt_token_ids:
        raise InvalidRequestError("the prompt has no tokens; at least 1 is needed", param="prompt")
    if request.params.prompt_logprobs is not None and request.earlier_outputs is None:
        message = "echo: with logprobs it needs those of the prompt, which workers by URL don't give"
        raise InvalidRequestError(message, param="echo", code="unsupported_field")
    if request.earlier_outputs is None:
        asked = _worker_request(request, [], max_model_len)
        return {0: replace(asked, num_cached_tokens=num_cached_tokens)}
    check_earlier_outputs(request)
    _check_resumable(request.params)
    asked_of = {}
    for index, output in sorted(request.earlier_outputs.items()):
        asked = _worker_request(request, list(output), max_model_len)
        request_id = f"{request.request_id}-{index}"
        asked_of[index] = replace(asked, request_id=request_id, n=1, num_cached_tokens=num_cached_tokens)
    return asked_of


def _worker_request(request: GenerateRequest, output: list[int], max_model_len: int) -> WorkerRequest:
    token_ids = request.prompt_token_ids + output
    room = max_model_len - len(token_ids)
    if room < 1:
        raise PromptTooLongError(
            f"the prompt has {len(token_ids)} tokens; at most {max_model_len - 1} leave room for an output "
            f"token in the context of {max_model_len}",
            param="prompt",
        )
    params = request.params
    max_tokens = min(params.max_tokens - len(output), room)
    if max_tokens < 1:
        message = f"{len(output)} tokens; the output has {params.max_tokens} at most"
        raise cannot_resume("earlier_outputs", message)
    min_tokens = min(max(0, params.min_tokens - len(output)), max_tokens)
    params = replace(params, max_tokens=max_tokens, min_tokens=min_tokens)
    return WorkerRequest(
        request.request_id, token_ids, params, request.n, request.priority, request.cache_salt, 0
    )


def _check_resumable(params: SamplingParams) -> None:
    """A worker can only be given the output as prompt: what looks at output alone would see too little."""
    looks_at_output = {
        "seed": params.seed is not None and not params.is_greedy,
        "presence_penalty": params.presence_penalty != 0,
        "frequency_penalty": params.frequency_penalty != 0,
        "structured output": params.structured_output is not None,
        "stop": bool(params.stop),
    }
    for name, is_used in looks_at_output.items():
        if is_used:
            message = (
                f"a request with {name} can't go on at a worker by URL, which takes output only as prompt"
            )
            raise cannot_resume("earlier_outputs", message)
