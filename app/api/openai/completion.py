"""What a chat completion and a text completion have in common as requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from app.api.openai.logprobs import Kind
from app.api.openai.response_format import StructuredOutputFields
from app.api.request_model import (
    MAX_SAMPLES,
    UNLIMITED,
    Bias,
    RankFields,
    RequestModel,
    StopString,
    TokenId,
    TokenIdKey,
)
from app.errors import InvalidRequestError
from app.generation import SamplingParams
from app.hashing import MAX_SALT_CHARS

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    # SGLang's, which its routers write out in every request.
    "no_stop_trim": (False,),
    "continue_final_message": (False,),
    "skip_special_tokens": (True,),
    "separate_reasoning": (True, False),
    "stream_reasoning": (True, False),
    "return_hidden_states": (False,),
}
"""Fields that the engine doesn't have, and the values that ask for nothing."""
_INFORMATIVE = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""Fields that never change an answer."""


class StreamOptions(RequestModel):
    """What a stream carries besides its chunks."""

    include_usage: bool = False


class CompletionRequest(RankFields, StructuredOutputFields):
    """What chat and text completions have in common.

    Attributes:
        kind: the endpoint's.
        prompt_field: the field that holds the prompt, for errors.
    """

    kind: ClassVar[Kind]
    prompt_field: ClassVar[str]
    neutral_values: ClassVar[Mapping[str, tuple[Any, ...]]] = _NEUTRAL
    informative_fields: ClassVar[Collection[str]] = _INFORMATIVE

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MAX_SAMPLES)
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)
    seed: int | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] = Field(default_factory=list)
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: Annotated[dict[TokenIdKey, Bias], Field(max_length=1024)] = Field(default_factory=dict)
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = Field(
        None, repr=False
    )

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            message = "stream_options: allowed only with stream: true"
            raise InvalidRequestError(message, param="stream_options")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens' logprobs are wanted beside each token's own; None: none at all."""
        raise NotImplementedError

    @property
    def max_output_tokens(self) -> int | None:
        """Output tokens at most; None: as many as the context allows."""
        raise NotImplementedError

    @property
    def session_id(self) -> str | None:
        """The session that the body names: here only a header can."""
        return None

    def engine_params(self) -> SamplingParams:
        """How the engine should sample, with the body's limit. Raises as `sampling_params` does."""
        return self.sampling_params(self.max_output_tokens or UNLIMITED)

    def sampling_params(self, max_tokens: int) -> SamplingParams:
        """How the engine should sample.

        Raises:
            InvalidRequestError: fields that don't go together.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            seed=self.seed,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias={int(token_id): bias for token_id, bias in self.logit_bias.items()},
            logprobs=self.num_logprobs,
            structured_output=self.structured_output(),
        )
