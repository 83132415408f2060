"""One request inside the engine: what was asked, and how far it has got."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from app import hashing
from app.engine.cache.prefix_cache import BlockTable
from app.generation import SamplingParams, StructuredOutput, TokenLogprobs


class TextStream(Protocol):
    """Incremental detokenisation of one output that looks for stop strings."""

    @property
    def matched(self) -> str | None:
        """The stop string found, if one was."""

    def push(self, token_id: int) -> str:
        """Take one token; the text that is now safe to emit."""


NewTextStream = Callable[[Sequence[str], int, bool], TextStream]
"""From stop strings, the number of tokens in whose text they aren't looked for, and whether special tokens
have no text."""


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


# Numbers below 1 with this many bits stay below 1 when multiplied and rounded in float64.
_DRAW_BITS = 48
_DRAWS = 1 << _DRAW_BITS


class Status(Enum):
    """Where a request is.

        NEW ── added ──▶ WAITING ── admitted ──▶ RUNNING ── finished, aborted ──▶ ENDED
                            ▲  └──────── aborted ───│────────────────────────────────▲
                            └────── preempted ──────┘

    A running request holds blocks, any other holds none.
    """

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


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
        status: where it is; written by the scheduler only.
        is_first: whether it is the first of the samples that were added together, whose prompt it computes.
        priority: lower is served first.
        arrival: the request's number in the order in which the scheduler was given it.
        num_overtaken: how often a later one of the same priority was admitted while this was the next.
        prompt_logprobs: those of the prompt's tokens from the second on, as far as the engine has found them;
            None: none are wanted.
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
    status: Status = Status.NEW
    is_first: bool = True
    num_computed_tokens: int = 0
    num_prefill_tokens: int = 0
    num_overtaken: int = 0
    arrival: int = -1
    prompt_logprobs: list[TokenLogprobs] | None = None

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
        scores_prompt: bool = False,
    ) -> Request:
        """A sample of which nothing is computed yet; those of one request share `usage`.

        `scores_prompt`: whether the prompt's logprobs, if the request wants them, are still to be found.
        """
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
            prompt_logprobs=[] if scores_prompt and params.prompt_logprobs is not None else None,
        )

    def draw(self) -> float:
        """The sample's next random number, from 0 to below 1. Every token that isn't greedy takes one."""
        return self.random.getrandbits(_DRAW_BITS) / _DRAWS

    @property
    def order(self) -> tuple[int, int]:
        """The place in the order of service: lower priority first, then earlier arrival."""
        return self.priority, self.arrival

    @property
    def num_cached_tokens(self) -> int | None:
        """Prompt tokens found in the cache when the first sample was first admitted; None before."""
        return self.usage.num_cached_tokens

    @property
    def shares_prompt(self) -> bool:
        """Whether nothing but the prompt is known, and the first sample computes that."""
        return not self.is_first and self.num_output_tokens == 0

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
    def num_hidden_tokens(self) -> int:
        """Leading tokens whose logits no one asked for, so that the cache may stand for them.

        The last one's choose the next token. Those of the prompt's tokens give its logprobs, if these are
        wanted, and aren't needed again once they did.
        """
        found = self.prompt_logprobs
        is_scored = found is None or len(found) == self.num_prompt_tokens - 1
        return self.num_tokens - 1 if is_scored else len(found or ())

    @property
    def num_pending_prefill_tokens(self) -> int:
        """Tokens still to compute before the next output token can be, decoding aside."""
        return max(0, self.num_prefill_tokens - self.num_computed_tokens)


def _sample_seed(seed: int | None, index: int) -> str | None:
    """The seed of one sample; as text, since `random` takes a negative number for its opposite."""
    return None if seed is None else f"{seed}/{index}"
