"""What a chat completion and a text completion have in common as requests."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from app.api.fields import STREAM_OPTIONS, Fields
from app.api.openai.logprobs import Kind
from app.api.openai.response_format import StructuredOutputFields
from app.api.openai.responses import UsageInStream
from app.api.request_model import (
    MAX_SAMPLES,
    UNLIMITED,
    Bias,
    Int,
    RequestBody,
    RequestModel,
    StopString,
    TokenIdKey,
    TokenIds,
)
from app.errors import InvalidRequestError
from app.generation import SamplingParams
from app.hashing import MAX_SALT_CHARS


class StreamOptions(RequestModel):
    """What a stream carries besides its chunks.

    Attributes:
        include_usage: a last chunk has the token counts.
        continuous_usage_stats: every chunk has those so far.
    """

    unserved: ClassVar[Fields] = STREAM_OPTIONS

    include_usage: bool = False
    continuous_usage_stats: bool = False


class CompletionRequest(RequestBody, StructuredOutputFields):
    """What chat and text completions have in common.

    Attributes:
        kind: the endpoint's.
        prompt_field: the field that holds the prompt, for errors.
        add_special_tokens: whether the tokenizer adds its own to the prompt; None: to a text, not to a chat.
        include_stop_str_in_output, no_stop_trim: vLLM's and SGLang's name for the same.
        best_of: OpenAI's number of samples of which the best `n` are shown; here all of them are.
        return_token_ids: whether the answer has the tokens of prompt and output too, as in vLLM.
    """

    kind: ClassVar[Kind]
    prompt_field: ClassVar[str]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Int = Field(1, ge=1, le=MAX_SAMPLES)
    best_of: Int | None = None
    priority: Int = Field(0, ge=-(2**31), lt=2**31)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: Int = Field(0, ge=-1, lt=2**31)
    seed: Int | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=256)] = Field(default_factory=list)
    ignore_eos: bool = False
    min_tokens: Int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: Annotated[dict[TokenIdKey, Bias], Field(max_length=1024)] = Field(default_factory=dict)
    add_special_tokens: bool | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    no_stop_trim: bool = False
    return_token_ids: bool = False
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = Field(
        None, repr=False
    )

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            message = "stream_options: allowed only with stream: true"
            raise InvalidRequestError(message, param="stream_options")
        return self

    @model_validator(mode="after")
    def _all_samples_are_shown(self) -> Self:
        if self.best_of not in (None, self.n):
            message = (
                f"best_of = {self.best_of} isn't supported; all samples are shown: leave it out, or send n"
            )
            raise InvalidRequestError(message, param="best_of", code="unsupported_field")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens' logprobs are wanted beside each token's own; None: none at all."""
        raise NotImplementedError

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The same for the prompt's tokens."""
        return None

    @property
    def max_output_tokens(self) -> int | None:
        """Output tokens at most; None: as many as the context allows."""
        raise NotImplementedError

    @property
    def usage_in_stream(self) -> UsageInStream:
        """Which chunks of a stream have token counts."""
        options = self.stream_options
        if options is None or not options.include_usage:
            return "none"
        return "every chunk" if options.continuous_usage_stats else "last chunk"

    @property
    def keeps_stop(self) -> bool:
        """Whether the text has the stop string that ended it."""
        return self.include_stop_str_in_output or self.no_stop_trim

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
            prompt_logprobs=self.num_prompt_logprobs,
            structured_output=self.structured_output(),
            skip_special_tokens=self.skip_special_tokens,
        )
