"""One DP rank: a Ray replica with its engine, its KV cache and its event publisher."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator

import ray
import torch
from ray import serve

from app.config import AppConfig
from app.deployments.logs import log_with_ray
from app.deployments.messages import NotAddressed, RankInfo, RankMessage
from app.deployments.rank.engine_thread import EngineThread
from app.engine.torch.engine import Engine
from app.events.endpoints import KvEvents, PublisherInfo
from app.events.publishing.publisher import EventPublisher
from app.events.snapshot import CacheSnapshot
from app.generation import GenerateRequest
from app.models.store import resolve_model
from app.text.grammar import GrammarCompiler
from app.text.tokenizer import Tokenizer

logger = logging.getLogger("ray.serve")


class DPRank:
    """Serves prompts on one rank of the deployment and describes the rank to whoever asks.

    The rank's number is Ray's replica rank: a replica that replaces a dead one gets the same number, so the
    ports are the same too. The publisher binds before the model is loaded: a taken port is told at once.

    Args:
        config: the whole deployment's.
        events: what its `kv_events_config` asks for.

    Raises:
        EndpointInUseError: a port of this rank is taken.
        ModelError: the model can't be served.
        ConfigError: an address can't be bound here, or there is no such device.
    """

    # Ray Serve awaits a constructor that is a coroutine function.
    async def __init__(self, config: AppConfig, events: KvEvents) -> None:  # type: ignore[misc]
        log_with_ray()
        context = serve.get_replica_context()
        self._rank = context.rank.rank
        self._replica_id = context.replica_id.unique_id
        self._node_ip = ray.util.get_node_ip_address()
        self._publisher = self._start_publisher(config, events)
        model_dir = resolve_model(config.model)
        tokenizer = Tokenizer.from_folder(model_dir)
        torch.set_num_threads(config.threads_per_rank)
        self._engine = Engine.load(
            model_dir,
            config.engine,
            device=config.model.device,
            dtype=config.model.dtype,
            max_model_len=config.model.max_model_len,
            eos_token_ids=tokenizer.eos_token_ids,
            new_text_stream=tokenizer.text_stream,
            new_grammar=GrammarCompiler.from_folder(model_dir, tokenizer.eos_token_ids).grammar,
        )
        self._engine_thread = EngineThread(self._engine, self._publisher, self._rank)
        self._engine_thread.start()
        logger.info("rank %d serves from %s: %s", self._rank, model_dir, self.describe_publisher())

    def _start_publisher(self, config: AppConfig, events: KvEvents) -> EventPublisher | None:
        if events.misconfigured and self._rank == 0:
            logger.warning("KV events are misconfigured, so no router can follow them: %s", events.reason)
        if events.config is None:
            return None
        publisher = EventPublisher(
            events.config,
            dp_rank=self._rank,
            dp_size=config.dp_size,
            block_size=config.engine.cache.block_size,
        )
        publisher.start()
        return publisher

    def describe_publisher(self) -> PublisherInfo | None:
        """The rank's publisher as subscribers should dial it; None if it publishes nothing."""
        return self._publisher.info(self._node_ip) if self._publisher else None

    async def describe(self, *, replica_id: str | None = None) -> RankInfo | NotAddressed:
        """The rank as it is now. Answers at once, whatever the engine is doing.

        Args:
            replica_id: the replica that is meant, None for whichever; another one answers `NotAddressed`.

        Raises:
            EngineFailedError: the engine has stopped; Ray will replace this replica.
        """
        if replica_id not in (None, self._replica_id):
            return NotAddressed()
        self._engine_thread.check_health()
        return RankInfo(
            rank=self._rank,
            replica_id=self._replica_id,
            node_ip=self._node_ip,
            pid=os.getpid(),
            publisher=self.describe_publisher(),
            load=self._engine_thread.load,
            max_prompt_tokens=self._engine.max_prompt_tokens,
            num_blocks=self._engine.num_blocks,
            num_cached_blocks=self._engine_thread.num_cached_blocks,
            max_model_len=self._engine.max_model_len,
            device=str(self._engine.device),
            dtype=str(self._engine.dtype).removeprefix("torch."),
            kernels=self._engine.kernels_name,
        )

    async def generate(self, request: GenerateRequest, *, replica_id: str) -> AsyncIterator[RankMessage]:
        """The request's output as the engine produces it; cancelling aborts the request.

        Args:
            request: the prompt.
            replica_id: the replica that the router chose; another one answers `NotAddressed`.
        """
        if replica_id != self._replica_id:
            yield NotAddressed()
            return
        async for message in self._engine_thread.generate(request):
            yield message

    async def snapshot(self, *, replica_id: str) -> CacheSnapshot | None:
        """The whole cache content at a known sequence number; None if another replica was meant."""
        if replica_id != self._replica_id:
            return None
        return await self._engine_thread.snapshot()

    def check_health(self) -> None:
        """Ray Serve replaces the replica when this raises."""
        self._engine_thread.check_health()

    def __del__(self) -> None:
        """Ray Serve calls this when it stops the replica: what is queued is still published."""
        engine_thread = getattr(self, "_engine_thread", None)
        if engine_thread is not None:
            engine_thread.stop()
        publisher = getattr(self, "_publisher", None)
        if publisher is not None:
            publisher.close()
