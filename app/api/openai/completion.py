"""What a chat completion and a text completion have in common as requests.

A field that OpenAI or SGLang defines and the engine doesn't have is accepted only with the value that asks
for nothing (`echo: false`); any other value, and any unknown field, is an error that names it. Nothing is
silently dropped.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from app.api.openai.logprobs import Kind
from app.api.openai.request_model import RequestModel
from app.api.openai.response_format import StructuredOutputFields
from app.errors import InvalidRequestError, shown
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

MAX_SAMPLES = 128
"""Answers to one prompt at most, as OpenAI has it."""

StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]
TokenIdKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(RequestModel):
    """What a stream carries besides its chunks."""

    include_usage: bool = False


class CompletionRequest(StructuredOutputFields):
    """What chat and text completions have in common.

    Attributes:
        kind: the endpoint's.
        prompt_field: the field that holds the prompt, for errors.
    """

    kind: ClassVar[Kind]
    prompt_field: ClassVar[str]

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MAX_SAMPLES)
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
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
    routed_dp_rank: int | None = None
    data_parallel_rank: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_built(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, neutral in _NEUTRAL.items():
            if name not in cls.model_fields and not _asks_for_nothing(values.get(name), neutral):
                raise InvalidRequestError(
                    f"{name} = {shown(values[name])} isn't supported; leave it out, or send {neutral[0]!r}",
                    param=name,
                    code="unsupported_field",
                )
        ignored = (_NEUTRAL.keys() | set(_INFORMATIVE)) - cls.model_fields.keys()
        return {name: value for name, value in values.items() if name not in ignored}

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            message = "stream_options: allowed only with stream: true"
            raise InvalidRequestError(message, param="stream_options")
        return self

    @model_validator(mode="after")
    def _one_rank(self) -> Self:
        new, old = self.routed_dp_rank, self.data_parallel_rank
        if None not in (new, old) and new != old:
            message = f"data_parallel_rank = {old}: the old name of routed_dp_rank, which is {new}; send one"
            raise InvalidRequestError(message, param="data_parallel_rank")
        return self

    @property
    def rank_fields(self) -> dict[str, int | None]:
        """The fields that can name a rank, the one that counts first."""
        return {"routed_dp_rank": self.routed_dp_rank, "data_parallel_rank": self.data_parallel_rank}

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens' logprobs are wanted beside each token's own; None: none at all."""
        raise NotImplementedError

    @property
    def max_output_tokens(self) -> int | None:
        """Output tokens at most; None: as many as the context allows."""
        raise NotImplementedError

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


def _asks_for_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether `value` is null or neutral. 0 is not False here: `logprobs: 0` asks for the tokens' own."""
    same = (each for each in neutral if isinstance(each, bool) == isinstance(value, bool))
    return value is None or value in tuple(same)
