"""What the deployments say to each other: plain frozen dataclasses, so that any of them can be pickled."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.errors import RequestError
from app.generation import TokenChunk
from app.routing.tracking.tracker import RankDescription


@dataclass(frozen=True)
class Refusal:
    """The rank does not serve the request; `error` is what the client should read."""

    error: RequestError


@dataclass(frozen=True)
class NotAddressed:
    """The call reached a replica other than the one that it names: that one is gone."""


RankMessage = TokenChunk | Refusal | NotAddressed


@dataclass(frozen=True)
class RankInfo(RankDescription):
    """One rank as it describes itself: to routers, and to `/server_info`.

    `num_blocks` and `num_cached_blocks` count KV blocks: all, and those that a prefix hit can find.
    """

    node_ip: str
    pid: int
    num_blocks: int
    num_cached_blocks: int
    max_model_len: int
    device: str
    dtype: str
    kernels: str


@dataclass(frozen=True)
class ChooseRequest:
    """What a router must know of a request: the prompt's length and the wire hashes of its full blocks.

    `exclude` holds the ranks that the request has failed on already; `session_id` is what the client calls
    its session. `choice_seq` orders the times that routers, any of them, are asked for this request.
    """

    request_id: str
    block_hashes: list[int]
    num_tokens: int
    pinned_rank: int | None = None
    exclude: frozenset[int] = frozenset()
    session_id: str | None = field(default=None, repr=False)  # may be what a client logs in with
    choice_seq: int = 0


@dataclass(frozen=True)
class Assignment:
    """The router's answer: the rank, and the replica that is that rank now."""

    rank: int
    replica_id: str


@dataclass(frozen=True)
class Unroutable:
    """The router's answer when it can't choose; `error` is what the client should read."""

    error: RequestError


@dataclass(frozen=True)
class PeerReservation:
    """What one router reserved, for the others: they must not take the rank for idle."""

    request_id: str
    rank: int
    replica_id: str
    uncached_tokens: int
    choice_seq: int
