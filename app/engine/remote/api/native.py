"""SGLang's native `POST /generate`, which kvbeacon serves too: token ids in, server-sent events out.

    data: {"index": 0, "output_ids": [5, 9], "meta_info": {"completion_tokens": 2, "finish_reason": null, …}}
    data: [DONE]

Facts of SGLang 0.5 (`GenerateReqInput`, `SamplingParams`): each event has all output so far, or with
`--incremental-streaming-output` only what is new. `completion_tokens` counts all either way, so it says how
many at the end are new.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from app.engine.remote.api.generation import WorkerRequest
from app.engine.remote.api.refusals import refusal_in_stream
from app.errors import EngineFailedError, InvalidRequestError, QueueFullError, RequestError, WireError
from app.events.schema import decode_capped
from app.generation import SamplingParams, StructuredOutput, TokenChunk, TokenLogprobs

DONE = b"[DONE]"


class _Meta(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    finish_reason: Any = None
    output_token_logprobs: list[list[Any]] | None = None
    output_top_logprobs: list[list[list[Any]] | None] | None = None


class _Event(msgspec.Struct, gc=False):
    output_ids: list[int] | None = None
    meta_info: _Meta | None = None
    index: int = 0
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class NativeApi:
    """See `GenerateApi`.

    Args:
        where: the worker's URL, for errors.
        dp_rank: the worker's rank; None: it has only one.
        higher_first: whether it serves requests of a higher priority first, as SGLang does unless told
            otherwise; ours have it the other way round.
        ignored: fields that it would silently leave out (`priority`, `seed`, `cache_salt`), and why.
    """

    path = "/generate"

    def __init__(
        self,
        where: str,
        dp_rank: int | None,
        *,
        higher_first: bool = True,
        ignored: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._where = where
        self._dp_rank = dp_rank
        self._higher_first = higher_first
        self._ignored = ignored

    def body(self, request: WorkerRequest) -> bytes:
        """See `GenerateApi`."""
        self._check_ignored(request)
        params = request.params
        body: dict[str, Any] = {
            "rid": request.request_id,
            "input_ids": request.token_ids,
            "sampling_params": _sampling(params, request.n),
            "stream": True,
            # kvbeacon's field; SGLang ignores it.
            "incremental_streaming_output": True,
        }
        if params.logprobs is not None:
            body |= {"return_logprob": True, "logprob_start_len": -1, "top_logprobs_num": params.logprobs}
        if request.cache_salt is not None:
            body["cache_salt"] = request.cache_salt
        if request.priority:
            body["priority"] = -request.priority if self._higher_first else request.priority
        return msgspec.json.encode(body)

    def _check_ignored(self, request: WorkerRequest) -> None:
        params = request.params
        is_used = {
            "priority": request.priority != 0,
            "seed": params.seed is not None and not params.is_greedy,
            "cache_salt": request.cache_salt is not None,
        }
        for name, why in self._ignored.items():
            if is_used[name]:
                raise InvalidRequestError(f"{name}: {why}", param=name)

    def headers(self) -> Mapping[str, str]:
        """See `GenerateApi`."""
        return {} if self._dp_rank is None else {"X-Data-Parallel-Rank": str(self._dp_rank)}

    def answer(self, request: WorkerRequest) -> _NativeAnswer:
        """See `GenerateApi`."""
        return _NativeAnswer(self._where + self.path, request.n)


class _NativeAnswer:
    """Reads the events of one request with `num_samples` samples."""

    def __init__(self, where: str, num_samples: int) -> None:
        self._where = where
        self._num_tokens = [0] * num_samples

    def take(self, data: bytes) -> Iterator[TokenChunk]:
        """See `Answer`."""
        if data == DONE:
            return
        event = decode_capped(_decode, data, "event of /generate")
        if event.error is not None:
            raise refusal_in_stream(self._where, event.error)
        if (meta := event.meta_info) is None:
            raise WireError(f"event of /generate without meta_info: {data[:200]!r}")
        token_ids = self._new_tokens(event.index, event.output_ids or [], meta.completion_tokens)
        finish_reason = _finish_reason(self._where, meta.finish_reason)
        if token_ids or finish_reason is not None:
            yield TokenChunk(
                token_ids=token_ids,
                num_prompt_tokens=meta.prompt_tokens,
                num_cached_tokens=meta.cached_tokens,
                finish_reason=finish_reason,
                index=event.index,
                logprobs=_logprobs(meta, len(token_ids)),
            )

    def _new_tokens(self, index: int, output_ids: list[int], num_tokens: int) -> list[int]:
        """Of a sample's tokens those at the end that are new, when it has `num_tokens` in all."""
        if not 0 <= index < len(self._num_tokens):
            raise WireError(f"event of /generate for sample {index}; there are {len(self._num_tokens)}")
        before, self._num_tokens[index] = self._num_tokens[index], num_tokens
        if not 0 <= num_tokens - before <= len(output_ids):
            given = f"{len(output_ids)} output_ids, {num_tokens} completion_tokens, {before} before"
            raise WireError(f"event of /generate: {given}")
        return output_ids[len(output_ids) - (num_tokens - before) :]


def _sampling(params: SamplingParams, n: int) -> dict[str, Any]:
    """SGLang's names; what is as it is by default stays away, so that an older SGLang isn't asked for it."""
    given: dict[str, Any] = {
        "max_new_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k or -1,
        "top_p": params.top_p,
        "ignore_eos": params.ignore_eos,
    }
    optional = {
        "n": n if n != 1 else None,
        "sampling_seed": None if params.seed is None else _int64(params.seed),
        "stop": list(params.stop) or None,
        "skip_special_tokens": False if params.stop and not params.skip_special_tokens else None,
        "stop_token_ids": list(params.stop_token_ids) or None,
        "min_new_tokens": params.min_tokens or None,
        "min_p": params.min_p or None,
        "presence_penalty": params.presence_penalty or None,
        "frequency_penalty": params.frequency_penalty or None,
        "repetition_penalty": params.repetition_penalty if params.repetition_penalty != 1 else None,
        "logit_bias": {str(token): bias for token, bias in params.logit_bias.items()} or None,
    }
    given |= {name: value for name, value in optional.items() if value is not None}
    return given | _structured(params.structured_output)


def _int64(seed: int) -> int:
    """SGLang keeps seeds in a tensor of these; those of another size would end its scheduler."""
    return (seed + 2**63) % 2**64 - 2**63


def _structured(wanted: StructuredOutput | None) -> dict[str, str]:
    if wanted is None:
        return {}
    match wanted.kind:
        case "json_schema":
            return {"json_schema": wanted.source}
        case "regex":
            return {"regex": wanted.source}
        case "choice":
            # SGLang has no choices of its own.
            return {"regex": "|".join(f"({re.escape(each)})" for each in json.loads(wanted.source))}
        case "grammar":
            return {"ebnf": wanted.source}


def _finish_reason(where: str, given: Any) -> str | None:
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else given
    if kind in ("stop", "length"):
        return str(kind)
    raise _aborted(where, given if isinstance(given, dict) else {})


def _aborted(where: str, details: dict[str, Any]) -> RequestError:
    """SGLang ends what it refuses late, or drops, with a reason of type `abort`."""
    message = str(details.get("message") or "the worker ended the request")
    status = details.get("status_code")
    if status in (400, "400", "BAD_REQUEST"):
        return InvalidRequestError(message)
    if "queue is full" in message:
        return QueueFullError(f"{where}: {message}")
    return EngineFailedError(f"{where}: {message}")


def _logprobs(meta: _Meta, num_new: int) -> list[TokenLogprobs] | None:
    """Of the last `num_new` tokens; entries are `[logprob, token id, text]`."""
    chosen, likeliest = meta.output_token_logprobs, meta.output_top_logprobs
    if chosen is None:
        return None
    if len(chosen) < num_new:
        raise WireError(f"event of /generate: {len(chosen)} output_token_logprobs for {num_new} tokens")
    tops: list[list[list[Any]] | None] = [None] * num_new
    if likeliest and num_new:
        given = likeliest[-num_new:]
        tops[num_new - len(given) :] = given
    chosen = chosen[len(chosen) - num_new :]
    return [
        TokenLogprobs(_number(own, 0), tuple((int(_number(each, 1)), _number(each, 0)) for each in top or ()))
        for own, top in zip(chosen, tops, strict=True)
    ]


def _number(entry: list[Any], place: int) -> float:
    value = entry[place] if place < len(entry) else None
    if not isinstance(value, int | float):
        raise WireError(f"event of /generate: {entry!r} where [logprob, token id] is needed")
    return value
