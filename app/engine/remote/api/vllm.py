"""vLLM's `POST /inference/v1/generate`: token ids in, server-sent events out.

    data: {"choices": [{"index": 0, "token_ids": [5], "finish_reason": null, "logprobs": null}]}
    data: {"choices": [], "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}, …}}
    data: [DONE]

Facts of vLLM 0.32 (`entrypoints/scale_out/token_in_token_out`): only `vllm serve --enable-scale-out` has it.
Cached tokens come with the usage, after the last token, and only with `--enable-prompt-tokens-details`.
`sampling_params` are the fields of `vllm.SamplingParams`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from app.engine.remote.api.generation import WorkerRequest
from app.engine.remote.api.refusals import refusal_in_stream
from app.errors import EngineFailedError, InvalidRequestError, WireError
from app.events.schema import decode_capped
from app.generation import SamplingParams, StructuredOutput, TokenChunk, TokenLogprobs
from app.hashing import WORKER_SALT_CHARS

DONE = b"[DONE]"
MIN_TEMPERATURE = 0.01
"""Of a request that isn't greedy."""
MAX_SEED = 2**63 - 1
"""It takes -1 for no seed, and no more than 64 bits."""
_NOT_IN_SALTS = frozenset("@/\\\0")


class _Logprob(msgspec.Struct, gc=False):
    token_id: int
    logprob: float
    top_logprobs: list[_Logprob] = []


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Logprob] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens_details: _PromptDetails | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class VllmApi:
    """See `GenerateApi`.

    Args:
        where: the worker's URL, for errors.
        dp_rank: the worker's rank; None: it has only one.
    """

    path = "/inference/v1/generate"

    def __init__(self, where: str, dp_rank: int | None) -> None:
        self._where = where
        self._dp_rank = dp_rank

    def body(self, request: WorkerRequest) -> bytes:
        """See `GenerateApi`."""
        body: dict[str, Any] = {
            "request_id": request.request_id,
            "token_ids": request.token_ids,
            "sampling_params": _sampling(request.params, request.n),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        _check_temperature(request.params)
        if request.cache_salt is not None:
            _check_salt(request.cache_salt)
            body["cache_salt"] = request.cache_salt
        if request.priority:
            body["priority"] = request.priority
        return msgspec.json.encode(body)

    def headers(self) -> Mapping[str, str]:
        """See `GenerateApi`."""
        return {} if self._dp_rank is None else {"X-data-parallel-rank": str(self._dp_rank)}

    def answer(self, request: WorkerRequest) -> _VllmAnswer:
        """See `GenerateApi`."""
        return _VllmAnswer(self._where + self.path, request)


class _VllmAnswer:
    """Reads the events of one request. The last sample's end waits for the usage, which comes right after."""

    def __init__(self, where: str, request: WorkerRequest) -> None:
        self._where = where
        self._num_prompt_tokens = len(request.token_ids)
        self._num_likeliest = request.params.logprobs
        self._num_cached_tokens = request.num_cached_tokens
        self._num_unfinished = request.n
        self._last: _Choice | None = None

    def take(self, data: bytes) -> Iterator[TokenChunk]:
        """See `Answer`."""
        if data == DONE:
            yield from self._end()
            return
        event = decode_capped(_decode, data, "event of /inference/v1/generate")
        if event.error is not None:
            raise refusal_in_stream(self._where, event.error)
        for choice in event.choices:
            self._num_unfinished -= choice.finish_reason is not None
            if self._num_unfinished == 0:
                self._last = choice
            elif choice.token_ids or choice.finish_reason is not None:
                yield self._chunk(choice)
        details = event.usage.prompt_tokens_details if event.usage is not None else None
        if details is not None and details.cached_tokens is not None:
            self._num_cached_tokens = details.cached_tokens
        if event.usage is not None:
            yield from self._end()

    def _end(self) -> Iterator[TokenChunk]:
        last, self._last = self._last, None
        if last is not None:
            yield self._chunk(last)

    def _chunk(self, choice: _Choice) -> TokenChunk:
        reason = choice.finish_reason
        if reason in ("abort", "error"):
            raise EngineFailedError(f"{self._where}: the worker ended the request: {reason}")
        token_ids = choice.token_ids or []
        return TokenChunk(
            token_ids=token_ids,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            # Beside these there is `repetition`, of a feature that isn't asked for.
            finish_reason="stop" if reason not in (None, "length") else reason,
            index=choice.index,
            logprobs=self._logprobs(choice, len(token_ids)),
        )

    def _logprobs(self, choice: _Choice, num_tokens: int) -> list[TokenLogprobs] | None:
        wanted = self._num_likeliest
        if wanted is None:
            return None
        content = (choice.logprobs.content if choice.logprobs is not None else None) or []
        if len(content) != num_tokens:
            raise WireError(f"event of {self._where}: {len(content)} logprobs for {num_tokens} tokens")
        return [TokenLogprobs(each.logprob, _likeliest(each, wanted)) for each in content]


def _likeliest(chosen: _Logprob, wanted: int) -> tuple[tuple[int, float], ...]:
    """vLLM puts the chosen token first, likely or not, and then the likeliest in order."""
    by_logprob = sorted(chosen.top_logprobs, key=lambda each: -each.logprob)
    return tuple((each.token_id, each.logprob) for each in by_logprob[:wanted])


def _check_temperature(params: SamplingParams) -> None:
    """Near 0 vLLM would silently take 0.01."""
    if not params.is_greedy and params.temperature < MIN_TEMPERATURE:
        allowed = f"0, or at least {MIN_TEMPERATURE}"
        message = f"temperature = {params.temperature}: the worker allows {allowed}"
        raise InvalidRequestError(message, param="temperature")


def _check_salt(salt: str) -> None:
    """vLLM would refuse it with a message that shows no more than this one does: a salt is a secret."""
    if len(salt) > WORKER_SALT_CHARS or _NOT_IN_SALTS.intersection(salt):
        message = (
            f"cache_salt: at most {WORKER_SALT_CHARS} characters, without '@', '/', '\\' and NUL, are allowed"
        )
        raise InvalidRequestError(message, param="cache_salt")


_SAME_NAMES = (
    *("max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "seed"),
    *("stop", "stop_token_ids", "ignore_eos"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
"""Fields that mean the same in both."""


def _sampling(params: SamplingParams, n: int) -> dict[str, Any]:
    """vLLM's names."""
    given: dict[str, Any] = {name: getattr(params, name) for name in _SAME_NAMES} | {"n": n}
    if params.is_greedy:
        given["temperature"] = 0.0
    if params.stop and not params.skip_special_tokens:
        given["skip_special_tokens"] = False
    if params.seed is not None:
        given["seed"] = params.seed & MAX_SEED
    if params.logit_bias:
        given["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    if params.logprobs is not None:
        # The chosen token takes one of the places; a worker refuses more than its --max-logprobs.
        given["logprobs"] = params.logprobs + 1 if params.logprobs else 0
    if params.structured_output is not None:
        given["structured_outputs"] = _structured(params.structured_output)
    return given


def _structured(wanted: StructuredOutput) -> dict[str, Any]:
    match wanted.kind:
        case "json_schema":
            return {"json": wanted.source}
        case "choice":
            return {"choice": json.loads(wanted.source)}
        case "regex":
            return {"regex": wanted.source}
        case "grammar":
            return {"grammar": wanted.source}
