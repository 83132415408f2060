"""What a rank says of itself to the routers."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    rank: int
    replica_id: str
    publisher: PublisherInfo | None
    load: LoadStat
    max_prompt_tokens: int
