"""The messages between the deployments: plain frozen dataclasses, so that each of them can be pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import RequestError
from app.generation import TokenChunk
from app.routing.misses.miss import Change, Miss
from app.routing.tracking.description import RankDescription
from app.text.outline import Outline

Json = dict[str, Any]


@dataclass(frozen=True)
class Refusal:
    """The rank does not serve the request; `error` is what the client should read."""

    error: RequestError


@dataclass(frozen=True)
class NotAddressed:
    """The call reached another replica than the one that it names: that one is gone."""


RankMessage = TokenChunk | Refusal | NotAddressed


@dataclass(frozen=True, slots=True)
class Claim:
    """One replica of `DPRank` as its peers need to know it, so that every number has one holder.

    Attributes:
        replica_id: the replica's.
        wanted: the number that Ray gives it now.
        held: the number under which it publishes; None before it does.
        node_ip: its node's address.
        ports: what it has bound there.
        worker: of remote ranks, the number of the worker's rank that it is for; else None.
    """

    replica_id: str
    wanted: int
    held: int | None
    node_ip: str
    ports: frozenset[int] = frozenset()
    worker: int | None = None


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
        ray_rank: Ray's number for it; `rank` follows as soon as no living replica holds that.
        num_rank_conflicts: times that another replica held its number too.
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
    ray_rank: int | None = field(default=None, kw_only=True)
    num_rank_conflicts: int = field(default=0, kw_only=True)
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
        model: `model.path` of the ingress, whose tokens these are; empty for any.
    """

    request_id: str
    block_hashes: list[int]
    num_tokens: int
    pinned_rank: int | None = None
    exclude: frozenset[RankReplica] = frozenset()
    session_id: str | None = field(default=None, repr=False)  # may be what a client logs in with
    choice_seq: int = 0
    num_output_tokens: int = 0
    model: str = ""


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


@dataclass(frozen=True)
class PromptNote:
    """What an ingress tells the routers of a prompt once one of them has chosen its rank.

    Attributes:
        request_id, choice_seq: name the choice.
        rank: the chosen one.
        tenant: the tenant's label, if there are tenants.
        outline: the prompt's content; None for what can't have one.
        block_hashes: of its full blocks, for the routers that haven't chosen; none where there is one router.
    """

    request_id: str
    choice_seq: int
    rank: int
    tenant: str | None
    outline: Outline | None
    block_hashes: Sequence[int] = ()


@dataclass(frozen=True)
class FoundMisses:
    """The answer of the router that has chosen: why the rest of the prompt isn't cached, as it expects.

    Attributes:
        misses: in the prompt's order, up to its end.
        change: where the prompt parts from an earlier one, if it does.
    """

    misses: Sequence[Miss]
    change: Change | None
