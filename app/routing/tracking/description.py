"""What a rank says of itself to the routers, or why it says nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from app.events.publisher_info import PublisherInfo
from app.events.schema import LoadStat


@dataclass(frozen=True)
class RankDescription:
    """What one rank says of itself when a router polls it.

    Attributes:
        rank: its number.
        replica_id: the replica that answers for this rank.
        publisher: where its events are; None when it publishes none.
        load: how busy it is.
        max_prompt_tokens: longer prompts than this are refused by the rank, always.
        unavailable: why it can serve no request now; None: it can.
        partial_cache: why its cache may hold more than it has published; None: it has published all.
        model: `model.path` of its configuration: while a redeploy changes it, some ranks have another one.
    """

    rank: int
    replica_id: str
    publisher: PublisherInfo | None
    load: LoadStat
    max_prompt_tokens: int
    unavailable: str | None = field(default=None, kw_only=True)
    partial_cache: str | None = field(default=None, kw_only=True)
    model: str = field(default="", kw_only=True)

    def seen_from(self, model: str) -> Self:
        """The rank as a router of `model` may use it: not at all while it has another model."""
        if self.model == model or self.unavailable is not None:
            return self
        return replace(self, unavailable=f"it serves the model {self.model}; this router's is {model}")


@dataclass(frozen=True)
class Absence:
    """Why a replica didn't describe itself when it was polled.

    Attributes:
        kind: `silent`: Ray has it, but it doesn't answer. `failed`: it answers that it has failed. `gone`:
            Ray doesn't have it among the replicas that take calls.
        reason: what else is known, for people to read; may be empty for a silent one.
    """

    kind: Literal["silent", "failed", "gone"]
    reason: str = ""
