"""The messages between the deployments: plain frozen dataclasses, so that each of them can be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.errors import RequestError
from app.generation import TokenChunk
from app.routing.tracking.description import RankDescription

Json = dict[str, Any]


@dataclass(frozen=True)
class Refusal:
    """The rank does not serve the request; `error` is what the client should read."""

    error: RequestError


@dataclass(frozen=True)
class NotAddressed:
    """The call reached another replica than the one that it names: that one is gone."""


RankMessage = TokenChunk | Refusal | NotAddressed


@dataclass(frozen=True)
class RankInfo(RankDescription):
    """One rank as it describes itself: to routers, and to `/server_info`.

    Attributes:
        node_ip: its node's address.
        pid: its process.
        num_blocks: KV blocks in all.
        num_cached_blocks: KV blocks that a prefix hit can find.
        max_model_len: tokens of the context.
        device: where the model runs.
        dtype: of weights and cache.
        kernels: the kernels' backend.
        foreign_events: see `EngineStatus`.
    """

    node_ip: str
    pid: int
    num_blocks: int
    num_cached_blocks: int
    max_model_len: int
    device: str
    dtype: str
    kernels: str
    foreign_events: Mapping[str, object] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class RankReplica:
    """One replica of `DPRank`, by the rank that it was and its id."""

    rank: int
    replica_id: str


@dataclass(frozen=True)
class ChooseRequest:
    """What a router needs of a request in order to choose.

    Attributes:
        request_id: the request's.
        block_hashes: wire hashes of the full blocks of prompt and output, in order.
        num_tokens: the length of both.
        pinned_rank: the only rank that the client allows, if it named one.
        exclude: replicas that the request was lost on, by the numbers that they had.
        session_id: the client's name for its session, if it gave one.
        choice_seq: increases each time that a router, any of them, is asked to choose for this request.
        num_output_tokens: how many of `num_tokens` are output that other ranks have produced.
    """

    request_id: str
    block_hashes: list[int]
    num_tokens: int
    pinned_rank: int | None = None
    exclude: frozenset[RankReplica] = frozenset()
    session_id: str | None = field(default=None, repr=False)  # may be what a client logs in with
    choice_seq: int = 0
    num_output_tokens: int = 0


@dataclass(frozen=True)
class Assignment:
    """The router's answer.

    Attributes:
        rank: the chosen rank.
        replica_id: the replica that is that rank now.
        predicted_ttft_s: seconds from the call until its first token, as predicted.
    """

    rank: int
    replica_id: str
    predicted_ttft_s: float = 0.0


@dataclass(frozen=True)
class Unroutable:
    """The router's answer when it can't choose; `error` is what the client should read."""

    error: RequestError


@dataclass(frozen=True)
class PeerReservation:
    """What one router reserved, for its peers: without it they would take the rank for idle."""

    request_id: str
    rank: int
    replica_id: str
    uncached_tokens: int
    choice_seq: int
