"""What one step of the engine gives back."""

from __future__ import annotations

from dataclasses import dataclass

from app.events.schema import CacheEvent
from app.generation import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """New tokens of one sample of a request.

    Attributes:
        index: the sample's number, from 0.
        new_token_ids: in order; the last output includes a stop or end-of-sequence token.
        finish_reason: None while there is more of this sample to come.
        num_cached_tokens: prompt tokens found in the cache when the first sample was first admitted.
        error: what went wrong where `finish_reason` is "error".
        logprobs: one per new token, if the request asked for them.
        prompt_logprobs: with the sample's first token, one per token of the prompt but the first, if the
            request asked for them.
    """

    request_id: str
    index: int
    new_token_ids: list[int]
    finish_reason: FinishReason | None
    num_prompt_tokens: int
    num_cached_tokens: int
    error: str | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """All outputs of one step, and what changed in the cache up to its end, in order."""

    outputs: list[RequestOutput]
    events: list[CacheEvent]
