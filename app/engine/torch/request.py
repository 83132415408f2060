"""One request inside the engine: what was asked, and how far it has got."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from app import hashing
from app.engine.cache.prefix_cache import BlockTable
from app.errors import InvalidRequestError
from app.text.structured_output import StructuredOutput

FinishReason = Literal["stop", "length", "error"]
MAX_LOGPROBS = 20


class TextStream(Protocol):
    """Incremental detokenisation of one output that looks for stop strings."""

    @property
    def matched(self) -> str | None:
        """The stop string found, if one was."""

    def push(self, token_id: int) -> str:
        """Take one token; the text that is now safe to emit."""


NewTextStream = Callable[[Sequence[str], int], TextStream]
"""From stop strings and the number of tokens in whose text they aren't looked for."""


class Grammar(Protocol):
    """Which tokens may come next in one output that must become what was asked for."""

    def allowed_tokens(self) -> bytes:
        """One byte per token id: 0 where the token can't be next. Raises RequestFailedError."""

    def accept(self, token_id: int) -> None:
        """Take the next token."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing can follow."""


NewGrammar = Callable[[StructuredOutput], Grammar]
"""May be called from any thread. Raises InvalidRequestError."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How output tokens are chosen and when they end.

    Attributes:
        max_tokens: output tokens at most; clipped to what the context and the cache allow.
        temperature: 0 takes the likeliest token (as does anything below 1e-5).
        top_k: only the k likeliest tokens; 0 is off.
        top_p: only the fewest likeliest tokens whose probabilities reach this sum; 1 is off.
        seed: gives the same tokens whatever else is in the batch; None draws one.
        stop: strings that end the output.
        stop_token_ids: tokens that end the output, and are its last.
        ignore_eos: go on after the model's end-of-sequence tokens.
        min_tokens: output tokens before which no end-of-sequence or stop token comes and no stop string is
            looked for. A structured output that is complete ends all the same.
        min_p: only tokens at least this fraction as likely as the likeliest; 0 is off.
        presence_penalty: taken once off the logits of tokens that the output has (OpenAI's definition).
        frequency_penalty: taken off for every time that the output has a token (OpenAI's definition).
        repetition_penalty: divides positive logits of tokens that prompt or output have and multiplies
            negative ones (https://arxiv.org/abs/1909.05858); 1 is off.
        logit_bias: token id to what is added to its logit.
        logprobs: how many likeliest tokens' logprobs to give beside each output token's own; None is off.
        structured_output: what the output must be.

    Raises:
        InvalidRequestError: a value is out of range.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    structured_output: StructuredOutput | None = None

    def __post_init__(self) -> None:
        _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _check(0 <= self.temperature < float("inf"), "temperature", self.temperature, "at least 0 and finite")
        _check(self.top_k >= 0, "top_k", self.top_k, "at least 1, or 0 for off")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _check("" not in self.stop, "stop", self.stop, "strings of at least one character")
        self._check_shaping()

    def _check_shaping(self) -> None:
        allowed = f"0 to max_tokens, which is {self.max_tokens}"
        _check(0 <= self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, allowed)
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "0 to 1")
        _check(-2 <= self.presence_penalty <= 2, "presence_penalty", self.presence_penalty, "-2 to 2")
        _check(-2 <= self.frequency_penalty <= 2, "frequency_penalty", self.frequency_penalty, "-2 to 2")
        penalty = self.repetition_penalty
        _check(0.01 <= penalty <= 100, "repetition_penalty", penalty, "0.01 to 100; 1 is off")
        for token_id, bias in self.logit_bias.items():
            _check(-100 <= bias <= 100, f"logit_bias.{token_id}", bias, "-100 to 100")
        logprobs = self.logprobs
        allowed = f"0 to {MAX_LOGPROBS}, or None for off"
        _check(logprobs is None or 0 <= logprobs <= MAX_LOGPROBS, "logprobs", logprobs, allowed)

    @property
    def is_greedy(self) -> bool:
        """Whether chance has no part. Dividing logits by less than 1e-5 would only make it slower."""
        return self.temperature < 1e-5 or self.top_k == 1

    @property
    def changes_logits(self) -> bool:
        """Whether a bias, a penalty or `min_tokens` stands between the model's logits and the choice."""
        return bool(
            self.logit_bias
            or self.min_tokens
            or self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1
        )


@dataclass(slots=True)
class PromptUsage:
    """What the samples of one prompt have in common.

    Attributes:
        num_cached_tokens: prompt tokens found in the cache when the first sample was first admitted.
    """

    num_cached_tokens: int | None = None


@dataclass(slots=True, eq=False)
class Request:
    """One sample of a request, which has one of them or several with the same prompt.

        token_ids  |<------ prompt ------>|<- output ->|
                   |<-- num_computed_tokens -->|                keys and values are in the cache
                   |<-- num_prefill_tokens ->|                  known when it was admitted: prompt work

    The engine appends tokens; the scheduler writes the rest.

    Attributes:
        index: the sample's number among those of its request.
        priority: lower is served first.
        arrival: the request's number in the order in which the scheduler was given it.
        num_overtaken: how often a later one of the same priority was admitted while this was the next.
    """

    request_id: str
    index: int
    priority: int
    usage: PromptUsage
    token_ids: list[int]
    num_prompt_tokens: int
    max_output_tokens: int
    params: SamplingParams
    table: BlockTable
    random: random.Random
    text_stream: TextStream | None = None
    grammar: Grammar | None = None
    num_computed_tokens: int = 0
    num_prefill_tokens: int = 0
    num_overtaken: int = 0
    arrival: int = -1

    @classmethod
    def new(
        cls,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        max_output_tokens: int,
        index: int = 0,
        priority: int = 0,
        usage: PromptUsage | None = None,
        cache_salt: str | None = None,
        text_stream: TextStream | None = None,
        grammar: Grammar | None = None,
    ) -> Request:
        """A sample of which nothing is computed yet; those of one request share `usage`."""
        return cls(
            request_id,
            index,
            priority,
            usage or PromptUsage(),
            list(prompt_token_ids),
            len(prompt_token_ids),
            max_output_tokens,
            params,
            BlockTable(hashing.seed(cache_salt)),
            random.Random(_sample_seed(params.seed, index)),
            text_stream,
            grammar,
        )

    @property
    def order(self) -> tuple[int, int]:
        """Who is served first: lower priority, then earlier arrival."""
        return self.priority, self.arrival

    @property
    def num_cached_tokens(self) -> int | None:
        """Prompt tokens found in the cache when the first sample was first admitted; None before."""
        return self.usage.num_cached_tokens

    @property
    def shares_prompt(self) -> bool:
        """Whether nothing but the prompt is known, and the first sample computes that."""
        return self.index > 0 and self.num_output_tokens == 0

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Output so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """Output so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_uncomputed_tokens(self) -> int:
        """Known tokens that are not in the cache: 1 while decoding."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_pending_prefill_tokens(self) -> int:
        """Tokens still to compute before the next output token can be, decoding aside."""
        return max(0, self.num_prefill_tokens - self.num_computed_tokens)


def _sample_seed(seed: int | None, index: int) -> str | None:
    """The seed of one sample; as text, since `random` takes a negative number for its opposite."""
    return None if seed is None else f"{seed}/{index}"


def _check(ok: bool, field_name: str, value: object, allowed: str) -> None:
    if not ok:
        raise InvalidRequestError(f"{field_name} = {value!r}; allowed: {allowed}", param=field_name)
