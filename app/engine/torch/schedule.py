"""One step's work: what the scheduler decides and the model runner computes."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.engine.torch.request import Request


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """A request and how many of its uncomputed tokens the step computes."""

    request: Request
    num_tokens: int

    @property
    def is_prefill(self) -> bool:
        """Whether these tokens are prompt work (of a preempted request also its earlier output)."""
        return self.request.num_pending_prefill_tokens > 0

    @property
    def is_sampled(self) -> bool:
        """Whether the step computes the last known token, whose logits give the next one."""
        return self.num_tokens == self.request.num_uncomputed_tokens

    @property
    def scored(self) -> range:
        """Places of the prompt that the step computes, whose logits give the next token's logprob."""
        found = self.request.prompt_logprobs
        if found is None:
            return range(0)
        start = self.request.num_computed_tokens
        return range(max(start, len(found)), min(start + self.num_tokens, self.request.num_prompt_tokens - 1))


@dataclass(frozen=True, slots=True)
class Schedule:
    """One step's work.

    A prompt of one token, a health check's say, counts as decoding: it takes as long, and its rate would be
    none that prompts are computed at.
    """

    scheduled: tuple[ScheduledRequest, ...]
    sampled: tuple[Request, ...]  # those whose last known token is computed: each gets its next one
    num_prefill_tokens: int
    num_decode_tokens: int


@dataclass(slots=True)
class Plan:
    """A step's work while the scheduler shares it out.

    Attributes:
        budget: tokens left to give.
        num_tokens: tokens given.
        digests: of the prompt blocks that the step works at.
    """

    budget: int
    num_tokens: dict[Request, int] = field(default_factory=dict)
    digests: set[bytes] = field(default_factory=set)

    def add(self, request: Request, num_tokens: int) -> None:
        """Give `request` that many tokens, more if it has some."""
        self.num_tokens[request] = self.num_tokens.get(request, 0) + num_tokens
        self.budget -= num_tokens

    def num_left(self, request: Request) -> int:
        """Known tokens of a running request that neither the cache nor the plan has."""
        return request.num_uncomputed_tokens - self.num_tokens.get(request, 0)
