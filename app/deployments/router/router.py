"""The router: a Ray replica that follows every rank and chooses. Tokens never pass through it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from app.config import AppConfig
from app.deployments.background import detached_task
from app.deployments.logs import log_with_ray
from app.deployments.messages import (
    Assignment,
    ChooseRequest,
    FoundMisses,
    Json,
    PeerReservation,
    PromptNote,
    RankReplica,
    Unroutable,
)
from app.deployments.rank_client import RankClient
from app.deployments.rank_directory import RankDirectory
from app.deployments.router.peer_routers import PeerRouters
from app.deployments.starting import says_why
from app.errors import KvbeaconError, NoRankError, PromptTooLongError, RequestError
from app.events.curve import KeyPair, load_router_keys
from app.events.endpoints import KvEvents
from app.models.store import served_name
from app.routing.core import RoutingCore
from app.routing.decisions.decision import Decision, Prompt
from app.routing.decisions.decision_log import DecisionLog, Outcome
from app.routing.decisions.explanation import explanation, record_json
from app.routing.misses.miss_book import MissBook
from app.routing.tracking.audit import Auditor
from app.routing.tracking.standing import Standing
from app.routing.tracking.tracker import Tracker

logger = logging.getLogger("ray.serve")

POLL_TIMEOUT_S = 2.0
"""Seconds that a rank gets to describe itself: a busy one should not be missed."""

FIRST_POLL_S = 3.0
"""Seconds that a new router looks for a rank before it takes requests. When it replaces another one, ranks
answer at once; when everything starts, they are still loading, and there is nothing to route to."""


class Router:
    """Finds the ranks from their descriptions, follows their events and load, and chooses.

    Methods that one router is called for take `nth`, which `NearestFirst` reads on the caller's side.

    Args:
        config: the whole deployment's; the router reads `routing`, the block size, how many ranks there are.
        events: names the key file with which it connects to ranks that encrypt.
        ranks: handle of the `DPRank` deployment.

    Raises:
        ConfigError: that key file is missing or holds no key pair, or there is no such policy.
    """

    # Ray Serve awaits a constructor that is a coroutine function.
    async def __init__(  # type: ignore[misc]
        self, config: AppConfig, events: KvEvents, ranks: DeploymentHandle[Any]
    ) -> None:
        self._discovery: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        """Kept, as a task that nothing refers to may be collected before its end."""
        log_with_ray()
        routing = config.routing
        rank_client = RankClient(ranks)
        self._directory = RankDirectory(rank_client, timeout_s=POLL_TIMEOUT_S)
        self._block_size = config.engine.cache.block_size
        self._discovery_interval_s = routing.discovery_interval_s
        self._core = RoutingCore(routing, config.largest_dp_size)
        with says_why("Router"):
            keys = _curve_keys(events)
        self._tracker = Tracker(
            self._core,
            rank_client.snapshot,
            keys,
            stall_timeout_s=config.engine.stall_timeout_s,
        )
        self._dp_size = config.expected_dp_size
        self._model = config.model.path
        self._served_name = served_name(config.model)
        self._decisions = DecisionLog(routing.remembered_decisions)
        self._misses = MissBook(
            self._core.index, routing.misses.remembered_blocks, routing.remembered_decisions
        )
        self._auditor = Auditor(self._tracker, self._core.index, rank_client.snapshot)
        self._peers = PeerRouters(routing.num_routers)
        self._num_unknown_peer_reservations = 0
        self._replica_id = serve.get_replica_context().replica_id.unique_id
        await self.start()

    async def start(self) -> None:
        """Look for ranks from now on; returns once one is known, or after `FIRST_POLL_S`.

        Ray sends requests as soon as the constructor is done; knowing no rank, a router refuses them.
        """
        self._discovery = asyncio.create_task(self._discover_forever())
        deadline = time.monotonic() + FIRST_POLL_S
        while not self._core.membership.routable and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """Stop looking for ranks and following them. Called on the event loop; a second call does nothing."""
        if self._discovery is not None:
            self._discovery.cancel()
            self._discovery = None
            self._closing = asyncio.create_task(self._tracker.close())

    def __del__(self) -> None:
        """Ray's only hook at a replica's end, called on its event loop."""
        self.stop()

    async def choose(self, request: ChooseRequest, *, nth: int = 0) -> Assignment | Unroutable:
        """The rank for a request, its work reserved there until the rank itself reports it."""
        try:
            prompt, decision = self._decide(self._core.choose, request)
        except RequestError as error:
            return Unroutable(error)
        self._decisions.record(request.request_id, decision)
        # After the loop has passed the answer on, and before it comes to another choice.
        asyncio.get_running_loop().call_later(0, self._misses.find, prompt, decision)
        replica_id = self._tracker.replica_id(decision.rank)
        self._peers.add(
            PeerReservation(
                request.request_id,
                decision.rank,
                replica_id,
                decision.uncached_tokens,
                request.choice_seq,
            )
        )
        return Assignment(decision.rank, replica_id, decision.predicted_ttft_s)

    async def add_peer_reservations(self, router: str, reservations: Sequence[PeerReservation]) -> None:
        """What a router, perhaps this one, has reserved."""
        if router == self._replica_id:
            return
        now = time.monotonic()
        for each in reservations:
            if self._tracker.routes_to(each.rank, each.replica_id):
                self._core.reservations.add_from_peer(
                    each.rank, each.request_id, each.uncached_tokens, now, each.choice_seq
                )
            else:
                self._num_unknown_peer_reservations += 1

    async def explain(self, request: ChooseRequest, *, nth: int = 0) -> Json | Unroutable:
        """What `choose` would do now, and why; nothing is reserved or remembered."""
        try:
            _, decision = self._decide(self._core.consider, request)
        except RequestError as error:
            return Unroutable(error)
        return {"router": self._replica_id, **explanation(decision, self._dp_size)}

    def _decide(self, decide: Callable[..., Decision], request: ChooseRequest) -> tuple[Prompt, Decision]:
        """The request's prompt, and what the core's `choose` or `consider` says of it, as things are now."""
        if request.model not in ("", self._model):
            raise NoRankError(f"the request is for the model {request.model}; {self._model} is served now")
        prompt = self._prompt(request)
        decision = decide(
            prompt,
            time.monotonic(),
            exclude=self._tracker.ranks_of({each.replica_id: each.rank for each in request.exclude}),
            pinned_rank=request.pinned_rank,
        )
        return prompt, decision

    def _prompt(self, request: ChooseRequest) -> Prompt:
        """The request's prompt. Raises `PromptTooLongError` when it fits no rank."""
        limit = self._tracker.max_prompt_tokens()
        if limit is not None and request.num_tokens > limit:
            # Refused before anything is reserved: the ranks would only say the same.
            message = f"the prompt has {request.num_tokens} tokens; at most {limit} fit context and KV cache"
            raise PromptTooLongError(message)
        return Prompt(
            request.request_id,
            request.block_hashes,
            request.num_tokens,
            self._block_size,
            request.session_id,
            request.choice_seq,
            request.num_output_tokens,
        )

    async def record_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """What became of requests, of other routers' too."""
        for outcome in outcomes:
            self._decisions.record_outcome(outcome)
            self._misses.record_outcome(outcome)

    async def note_prompts(self, notes: Sequence[PromptNote]) -> list[FoundMisses | None]:
        """What prompts hold; in the same order, the misses of those that this router has chosen for."""
        return [self._note(note) for note in notes]

    def _note(self, note: PromptNote) -> FoundMisses | None:
        choice = (note.request_id, note.choice_seq)
        case = self._misses.note(choice, note.tenant, note.outline)
        if case is not None:
            return FoundMisses(case.findings.misses, case.change)
        self._misses.learn(choice, note.block_hashes, note.rank, note.outline, self._block_size)
        return None

    async def misses(self) -> Json:
        """How many tokens were missed for each reason, and where most; see `MissBook.table`."""
        return {"router": self._replica_id, **self._misses.table(self._served_name)}

    async def decisions(self, request_id: str) -> list[Json]:
        """The receipts of what this router decided for a request; none when it doesn't know it."""
        return [
            {
                "router": self._replica_id,
                **record_json(record, self._dp_size),
                "missed": self._misses.receipt((request_id, record.decision.choice_seq)),
            }
            for record in self._decisions.of(request_id)
        ]

    async def stats(self) -> Json:
        """How good this router's decisions have been since its start."""
        from_peers = {
            "reservations": self._core.reservations.num_from_peers,
            "too_late": self._core.reservations.num_late_from_peers,
            "of_unknown_replicas": self._num_unknown_peer_reservations,
        }
        decisions = self._decisions.stats.as_json()
        return {
            "router": self._replica_id,
            **decisions,
            "missed_tokens": dict(self._misses.tally.tokens),
            "heard_from_routers": from_peers,
            "ranks": asdict(self._tracker.counters),
        }

    async def audit(self) -> Json:
        """This router's index beside every rank's own cache."""
        ranks = {*range(self._dp_size), *(member.rank for member in self._tracker.members())}
        audits = await detached_task(self._auditor.audit(sorted(ranks)))
        answers = [{**asdict(audit), "equal": audit.equal} for audit in audits]
        return {"router": self._replica_id, "ranks": answers}

    async def release(self, request_id: str) -> None:
        """The request will not reach its rank, or is no longer wanted there."""
        self._core.reservations.release(request_id)

    async def mark_failed(self, rank: int, replica_id: str) -> None:
        """An ingress saw this replica die: its blocks and load are dropped now."""
        self._tracker.mark_failed(rank, replica_id)

    async def standings(self, replicas: Sequence[RankReplica], *, nth: int = 0) -> list[Standing]:
        """How each of these replicas stands, in the same order: an ingress has requests there."""
        return [self._tracker.standing(each.rank, each.replica_id) for each in replicas]

    async def view(self, *, nth: int = 0) -> Json:
        """What this router believes of every rank that is there, whether or not it can take requests."""
        return {"router": self._replica_id, "ranks": self._rank_views()}

    def _rank_views(self) -> list[Json]:
        self._core.reservations.expire(time.monotonic())
        load = self._core.load
        return [
            {
                "rank": member.rank,
                "replica_id": member.replica_id,
                "other_replicas": list(member.other_replicas),
                "unavailable": member.unavailable,
                "model": member.model,
                "trust": member.status.state,
                "reason": member.status.reason,
                "since": member.status.since,
                "applied_seq": member.status.applied_seq,
                "gaps": member.status.gaps,
                "resyncs": member.status.resyncs,
                "bad_messages": member.status.bad_messages,
                "num_blocks": member.num_blocks,
                "num_requests": load.num_requests(member.rank),
                "waiting_tokens": load.waiting_tokens(member.rank),
            }
            for member in self._tracker.members()
        ]

    def check_health(self) -> None:
        """Ray Serve replaces the router when this raises: without discovery it would route blindly."""
        if self._discovery is None or self._discovery.done():
            raise KvbeaconError("the router no longer looks for ranks")

    async def _discover_forever(self) -> None:
        while True:
            try:
                infos, absent = await self._directory.look(self._tracker.take_unknown())
                await self._tracker.update([info.seen_from(self._model) for info in infos], absent)
            except Exception:
                logger.exception("looking at the ranks failed; trying again")
            await asyncio.sleep(self._discovery_interval_s)


def _curve_keys(events: KvEvents) -> KeyPair | None:
    curve = events.config.curve if events.config is not None else None
    return load_router_keys(curve) if curve is not None else None
