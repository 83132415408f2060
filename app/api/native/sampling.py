"""`sampling_params` of a native request: SGLang's names, ranges and defaults, as far as the engine has them.

Defaults are SGLang's constants (its `--sampling-defaults openai`), not those of a model's
generation_config.json: an answer doesn't depend on a file of the model's folder.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Annotated, Any, ClassVar

from pydantic import Field

from app.api.fields import NATIVE_SAMPLING, Fields
from app.api.request_model import (
    MAX_SAMPLES,
    UNLIMITED,
    Bias,
    Int,
    RequestModel,
    StopString,
    TokenIdKey,
    TokenIds,
)
from app.errors import InvalidRequestError
from app.generation import SamplingParams, StructuredOutput

_PATH = "sampling_params."
"""Where a body has this object, for errors."""


class NativeSampling(RequestModel):
    """How a native request's output is chosen and when it ends. Attributes: see `SamplingParams`.

    Unlike everywhere else, `max_new_tokens: null` differs from nothing, as it does in SGLang: there is no
    limit.
    """

    unserved: ClassVar[Fields] = NATIVE_SAMPLING
    meaningful_nulls: ClassVar[Collection[str]] = ("max_new_tokens",)

    max_new_tokens: Annotated[Int, Field(ge=1)] | None = 128
    min_new_tokens: Int = Field(0, ge=0)
    n: Int = Field(1, ge=1, le=MAX_SAMPLES)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: Int = Field(-1, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: Annotated[dict[TokenIdKey, Bias], Field(max_length=1024)] = Field(default_factory=dict)
    sampling_seed: Int | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=256)] = Field(default_factory=list)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    json_schema: str | dict[str, Any] | None = None
    regex: Annotated[str, Field(min_length=1)] | None = None
    ebnf: Annotated[str, Field(min_length=1)] | None = None

    def sampling_params(self, logprobs: int | None) -> SamplingParams:
        """How the engine should sample.

        Args:
            logprobs: how many likeliest tokens' logprobs to give beside each token's own; None: none at all.

        Raises:
            InvalidRequestError: fields that don't go together.
        """
        max_tokens = UNLIMITED if self.max_new_tokens is None else self.max_new_tokens
        if self.min_new_tokens > max_tokens:
            field = f"{_PATH}min_new_tokens"
            allowed = f"0 to max_new_tokens, which is {max_tokens}"
            raise InvalidRequestError(f"{field} = {self.min_new_tokens}; allowed: {allowed}", param=field)
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            seed=self.sampling_seed,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_new_tokens,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias={int(token_id): bias for token_id, bias in self.logit_bias.items()},
            logprobs=logprobs,
            structured_output=self._structured_output(),
            skip_special_tokens=self.skip_special_tokens,
        )

    def _structured_output(self) -> StructuredOutput | None:
        """What the output must be; None for any text. Raises when more than one thing is asked for."""
        schema = (
            self.json_schema if isinstance(self.json_schema, str | None) else json.dumps(self.json_schema)
        )
        wanted = []
        if schema is not None:
            wanted.append(StructuredOutput("json_schema", schema, f"{_PATH}json_schema"))
        if self.regex is not None:
            wanted.append(StructuredOutput("regex", self.regex, f"{_PATH}regex"))
        if self.ebnf is not None:
            wanted.append(StructuredOutput("grammar", self.ebnf, f"{_PATH}ebnf"))
        if len(wanted) > 1:
            first, second, *_ = (each.field for each in wanted)
            raise InvalidRequestError(f"{second}: {first} is given too; send one of them", param=second)
        return wanted[0] if wanted else None
