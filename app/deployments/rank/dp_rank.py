"""One DP rank: a Ray replica with its engine, its KV cache and its event publisher."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import replace

import ray
from ray import serve
from ray.serve.schema import ReplicaRank

from app.config import AppConfig
from app.deployments.logs import log_with_ray
from app.deployments.messages import Claim, NotAddressed, RankInfo, RankMessage
from app.deployments.rank.claims import free_worker, is_spare
from app.deployments.rank.core import RankCore
from app.deployments.rank.number import RankNumber
from app.deployments.rank.peers import RayPeers
from app.deployments.rank.place import RankPlace
from app.deployments.starting import check_num_ranks, says_why
from app.engine.interface import RankEngine
from app.engine.load import load_engine
from app.errors import EngineFailedError
from app.events.endpoints import KvEvents
from app.events.publisher_info import PublisherInfo
from app.events.snapshot import CacheSnapshot
from app.generation import GenerateRequest

logger = logging.getLogger("ray.serve")

ENGINE_FAILED_STATUS = 70
"""The process' exit status when its engine has failed: `EX_SOFTWARE` of sysexits.h."""


class DPRank:
    """Serves prompts on one rank of the deployment and describes the rank to any caller.

    The rank's number is Ray's replica rank, unless another replica still holds that; it may change while the
    replica runs (`RankNumber`), and ports, publisher and description follow. The publisher binds before the
    model is loaded: a taken port is reported at once.

    Args:
        config: the whole deployment's.
        events: what its `kv_events_config` asks for.

    Raises:
        EndpointInUseError: a port of this rank is taken, and not by a replica that is leaving.
        ModelError: the model can't be served.
        ConfigError: an address can't be bound here, there is no such device, or Serve has more ranks.
    """

    # Ray Serve awaits a constructor that is a coroutine function.
    async def __init__(self, config: AppConfig, events: KvEvents) -> None:  # type: ignore[misc]
        self._running = ExitStack()
        """Stops what has been started, the last first."""
        self._spare = ""
        """Why this replica should make room for another one; empty: it should not."""
        self._model = config.model.path
        self._remote_ranks = config.remote_ranks
        with says_why("DPRank"):
            await self._construct(config, events)

    async def _construct(self, config: AppConfig, events: KvEvents) -> None:
        log_with_ray()
        context = serve.get_replica_context()
        check_num_ranks(context.world_size, config.largest_dp_size)
        self._replica_id = context.replica_id.unique_id
        self._node_ip = ray.util.get_node_ip_address()
        if context.rank.rank == 0:
            events.log(logger)
        self._place = RankPlace(config, events)
        self._running.callback(self._place.close)
        claim = Claim(self._replica_id, context.rank.rank, None, self._node_ip)
        self._number = RankNumber(
            claim, config.largest_dp_size, RayPeers(), self._place, on_peers=self._check_worker
        )
        peers = await self._number.take()
        self._engine = self._load_engine(config, peers)
        self._core = RankCore(self._engine, self._number.held, self._place.publisher)
        self._start()
        model_dir = self._engine.description.model_dir
        logger.info("rank %d serves from %s: %s", self._number.held, model_dir, self._describe_publisher())

    def _load_engine(self, config: AppConfig, peers: Sequence[Claim]) -> RankEngine:
        """The engine; of remote ranks, for a worker's rank that no other replica is for."""
        if config.remote_ranks is None:
            return load_engine(config, self._number.held)
        worker = free_worker(self._number.claim, peers, config.remote_ranks.dp_size)
        self._number.claim = replace(self._number.claim, worker=worker)
        engine = load_engine(config, worker)
        engine.renumber(self._number.held)
        return engine

    def _check_worker(self, peers: Sequence[Claim]) -> None:
        """Of remote ranks that started together, two may be for one worker's rank, and none for another."""
        claim, remote = self._number.claim, self._remote_ranks
        if remote is not None and is_spare(claim, peers, remote.dp_size):
            self._spare = f"another replica is for the same worker's rank, {claim.worker}, and one has none"

    def _start(self) -> None:
        """Start the engine, on the event loop on which Ray Serve constructs and calls this."""
        self._core.start()
        self._running.callback(self._core.stop)
        self._place.core = self._core
        self._number.start()
        self._running.callback(self._number.stop)

    async def reconfigure(self, user_config: object, rank: ReplicaRank) -> None:
        """Ray calls this after the constructor, and when it gives the replica another number.

        It returns at once: until then no call reaches the replica.
        """
        self._number.want(rank.rank)

    async def claims(self, claim: Claim) -> Claim:
        """Hear what another replica claims. Returns this one's claim."""
        return self._number.hear(claim)

    def stop(self) -> None:
        """Stop the engine, then the publisher, which sends what is queued; a second call does nothing."""
        self._running.close()

    def __del__(self) -> None:
        """Ray Serve calls this, and nothing else, when it stops the replica, or could not construct it."""
        self.stop()

    async def describe(
        self, *, replica_id: str | None = None, other_than: frozenset[str] = frozenset()
    ) -> RankInfo | NotAddressed:
        """The rank as it is now. Answers at once, also while the engine computes a long step.

        Args:
            replica_id: the replica that is meant, None for any; another one answers `NotAddressed`.
            other_than: replicas that are not meant; one of these answers `NotAddressed` too.

        Raises:
            EngineFailedError: the engine has stopped; Ray will replace this replica.
        """
        self._number.called()
        if replica_id not in (None, self._replica_id) or self._replica_id in other_than:
            return NotAddressed()
        self._engine.check_health()
        engine, status = self._engine.description, self._engine.status
        return RankInfo(
            rank=self._core.rank,
            replica_id=self._replica_id,
            node_ip=self._node_ip,
            pid=os.getpid(),
            publisher=self._describe_publisher(),
            load=self._core.load,
            max_prompt_tokens=engine.max_prompt_tokens,
            num_blocks=engine.num_blocks,
            num_cached_blocks=self._engine.num_cached_blocks,
            max_model_len=engine.max_model_len,
            device=engine.device,
            dtype=engine.dtype,
            kernels=engine.kernels,
            ray_rank=self._number.claim.wanted,
            num_rank_conflicts=self._number.num_conflicts,
            unavailable=status.unavailable,
            partial_cache=status.partial_cache,
            model=self._model,
            foreign_events=status.foreign_events,
        )

    def _describe_publisher(self) -> PublisherInfo | None:
        """The rank's publisher as subscribers should dial it; None if it publishes nothing."""
        publisher = self._core.publisher
        return None if publisher is None else publisher.info(self._node_ip)

    async def generate(self, request: GenerateRequest, *, replica_id: str) -> AsyncIterator[RankMessage]:
        """The request's output as the engine produces it; cancelling aborts the request.

        Args:
            request: the prompt.
            replica_id: the replica that the router chose; another one answers `NotAddressed`.
        """
        if replica_id != self._replica_id:
            yield NotAddressed()
            return
        async with aclosing(self._core.generate(request)) as messages:
            async for message in messages:
                yield message

    async def snapshot(self, *, replica_id: str) -> CacheSnapshot | None:
        """The whole cache content at a known sequence number; None if another replica was meant."""
        if replica_id != self._replica_id:
            return None
        return await self._core.snapshot()

    async def reset_cache(self, *, replica_id: str) -> bool | None:
        """Forget all cached blocks; whether it was done, None if another replica was meant."""
        if replica_id != self._replica_id:
            return None
        return await self._engine.reset_cache()

    def check_health(self) -> None:
        """Ends the process once the engine has failed or hangs; Ray Serve replaces one whose process is gone.

        It would replace one that raises here too, but only after several checks, and under another number:
        the replica that Ray still stops keeps its own. Requests were failed by the engine already.
        """
        try:
            self._engine.check_health()
            if self._spare:
                raise EngineFailedError(self._spare)
        except EngineFailedError as error:
            logger.critical("rank %d ends: %s", self._core.rank, error)
            os._exit(ENGINE_FAILED_STATUS)
