"""What every engine and every API share: requests, sampling parameters, structured outputs, token chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.errors import InvalidRequestError

FinishReason = Literal["stop", "length", "error"]
MAX_LOGPROBS = 20
"""Likeliest tokens whose logprobs a request may ask for, beside each output token's own."""
MAX_SOURCE_CHARS = 65_536
"""Longest schema, regex, grammar or list of choices in characters: it compiles within about a second."""


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """A constraint as the request gives it.

    Attributes:
        kind: the kind of constraint that `source` holds.
        source: a JSON schema or a list of choices, both as JSON; a regex; a grammar in Lark's or llama.cpp's
            notation.
        field: the request's field that held `source`, for errors.

    Raises:
        InvalidRequestError: the source is too long.
    """

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    source: str
    field: str

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE_CHARS:
            raise InvalidRequestError(
                f"{self.field}: {len(self.source)} characters; allowed: at most {MAX_SOURCE_CHARS}",
                param=self.field,
            )


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How output tokens are chosen and when they end.

    Attributes:
        max_tokens: output tokens at most; clipped to what the context and the cache allow.
        temperature: 0 takes the likeliest token (as does anything below 1e-5).
        top_k: only the k likeliest tokens; 0 is off.
        top_p: only the fewest likeliest tokens whose probabilities reach this sum; 1 is off.
        seed: gives the same tokens in any batch; None draws one.
        stop: strings that end the output.
        stop_token_ids: tokens that end the output, and are its last.
        ignore_eos: continue after the model's end-of-sequence tokens.
        min_tokens: output tokens before which no end-of-sequence or stop token comes and no stop string is
            looked for. A structured output that is complete ends all the same.
        min_p: only tokens at least this fraction as likely as the likeliest; 0 is off.
        presence_penalty: taken once off the logits of tokens that the output has (OpenAI's definition).
        frequency_penalty: taken off for every time that the output has a token (OpenAI's definition).
        repetition_penalty: divides positive logits of tokens that prompt or output have and multiplies
            negative ones (https://arxiv.org/abs/1909.05858); 1 is off.
        logit_bias: token id to what is added to its logit.
        logprobs: how many likeliest tokens' logprobs to give beside each output token's own; None is off.
        prompt_logprobs: the same for the prompt's tokens, all but the first. Their logits are computed, so
            nothing of the prompt is taken from the cache.
        structured_output: the constraint that the output must satisfy.
        skip_special_tokens: whether special tokens have no text, in which stop strings could be.

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
    prompt_logprobs: int | None = None
    structured_output: StructuredOutput | None = None
    skip_special_tokens: bool = True

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
        allowed = f"0 to {MAX_LOGPROBS}, or None for off"
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            _check(count is None or 0 <= count <= MAX_LOGPROBS, name, count, allowed)

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


@dataclass(frozen=True)
class GenerateRequest:
    """One prompt on its way to an engine.

    Attributes:
        request_id: names the request; no other live one of the engine may have it.
        prompt_token_ids: the prompt.
        params: how its output is chosen and ends.
        cache_salt: keeps its cached blocks apart from other salts'.
        n: samples wanted.
        priority: lower is served first.
        earlier_outputs: of a request that another rank began: the index of each unfinished sample and the
            output tokens it has already. Only these samples go on, each as if it had been computed here. None
            starts all n samples from the prompt.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    cache_salt: str | None = field(default=None, repr=False)  # a secret: no log and no error may show it
    n: int = 1
    priority: int = 0
    earlier_outputs: Mapping[int, Sequence[int]] | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities at one place of an output or a prompt.

    They are of the raw distribution, `log_softmax` of the model's logits in float32, as OpenAI and vLLM give
    them: the request's sampling parameters change the choice, but not these. So the chosen token may not be
    among the likeliest.

    Attributes:
        logprob: the chosen token's.
        likeliest: (token id, logprob) pairs, as many as the request wants, the likeliest first.
    """

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TokenChunk:
    """What one engine step added to a sample of a request.

    `finish_reason` is None while the sample goes on, else `stop` or `length`. `index` is the sample's number;
    the stream ends when every sample has. The numbers of prompt tokens are the same in every chunk, and count
    once. `logprobs` has one entry per token if the request wants them; `prompt_logprobs`, in a sample's first
    chunk, one per token of the prompt but the first.
    """

    token_ids: list[int]
    num_prompt_tokens: int
    num_cached_tokens: int
    finish_reason: str | None = None
    index: int = 0
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None


def _check(ok: bool, field_name: str, value: object, allowed: str) -> None:
    if not ok:
        raise InvalidRequestError(f"{field_name} = {value!r}; allowed: {allowed}", param=field_name)
