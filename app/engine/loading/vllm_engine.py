"""vLLM in the replica, where it is installed; see `app.engine.vllm`."""

from __future__ import annotations

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from app.config import AppConfig
from app.engine.interface import EngineDescription, RankEngine
from app.engine.limits import Limits
from app.engine.relay.feed_status import ForeignPublisher
from app.engine.torch.memory.available import available_bytes
from app.engine.vllm.admission import Admission
from app.engine.vllm.arguments import check_given, check_installed, check_known, engine_arguments
from app.engine.vllm.engine import VllmEngine
from app.engine.vllm.load_meter import LoadMeter
from app.errors import ConfigError
from app.models.store import resolve_model
from app.text.grammar import GrammarCompiler
from app.text.tokenizer import Tokenizer

_TOPIC = "kv"
# No statistics to its makers; a fresh interpreter for each of its processes, as this one has threads.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
}
_CPU_KV_CACHE = "VLLM_CPU_KVCACHE_SPACE"


def load(config: AppConfig, dp_rank: int) -> RankEngine:
    """See `load_engine`. Starts vLLM, on the running event loop.

    Raises:
        ModelError: vLLM can't serve the model.
        ConfigError: vLLM isn't installed, computes on another device, or refuses an argument.
    """
    check_given(config)
    check_installed()
    os.environ.update(_ENVIRONMENT)
    known = import_module("app.engine.vllm.argument_names")
    check_known(config.engine.vllm, known.ENGINE_ARGUMENTS)
    on_cpu = _prepare_device(config, known.DEVICE)
    async_llm = import_module("app.engine.vllm.async_llm")

    model_dir = resolve_model(config.model)
    tokenizer = Tokenizer.from_folder(model_dir)
    grammars = GrammarCompiler.from_folder(model_dir, tokenizer.eos_token_ids)
    # Private, so that no other user reads or writes there; and no port of this machine is taken.
    folder = Path(tempfile.mkdtemp(prefix="kvbeacon-vllm-"))
    publisher = ForeignPublisher(f"ipc://{folder}/events", f"ipc://{folder}/replay", _TOPIC)
    arguments = engine_arguments(
        config,
        model_dir,
        on_cpu=on_cpu,
        available_bytes=None if _CPU_KV_CACHE in os.environ else available_bytes(torch.device("cpu")),
        events=_events(publisher),
    )
    core = async_llm.AsyncLlm(arguments, folder)
    block_size = config.engine.cache.block_size
    if core.block_size != block_size:
        core.shutdown()
        raise ConfigError(
            f"engine.cache.block_size = {block_size}: vLLM needs {core.block_size} for this model and device"
        )
    limits = Limits(core.max_model_len, core.num_blocks, block_size, core.vocab_size)
    scheduler = config.engine.scheduler
    max_running = arguments["max_num_seqs"]
    return VllmEngine(
        core,
        EngineDescription(
            model_dir=str(model_dir),
            max_model_len=core.max_model_len,
            max_prompt_tokens=limits.max_prompt_tokens,
            num_blocks=core.num_blocks,
            device=known.DEVICE,
            dtype=core.dtype,
            kernels="vllm",
        ),
        dp_rank,
        admission=Admission(limits, tokenizer.eos_token_ids, tokenizer.text_stream),
        meter=LoadMeter(dp_rank, core.num_blocks * block_size, max_running),
        publisher=publisher if core.caches_prefixes else None,
        block_size=block_size,
        max_waiting=scheduler.max_waiting_requests,
        check_structure=grammars.grammar,
        stall_timeout_s=config.engine.stall_timeout_s,
    )


def _prepare_device(config: AppConfig, device: str) -> bool:
    """Whether vLLM computes on a CPU; its threads there are the rank's.

    Raises:
        ConfigError: this vLLM was built for another device than `model.device`.
    """
    wanted = config.model.device
    if wanted not in ("auto", device):
        raise ConfigError(f"model.device = {wanted!r}: the vLLM that is installed computes on {device!r}")
    if device != "cpu":
        return False
    # Ray gives every process one thread; and vLLM would bind each rank's to the same cores.
    os.environ["OMP_NUM_THREADS"] = str(config.threads_per_rank)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return True


def _events(publisher: ForeignPublisher) -> dict[str, Any]:
    """vLLM's `KVEventsConfig`."""
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": publisher.event_endpoint,
        "replay_endpoint": publisher.replay_endpoint,
        "topic": publisher.topic,
    }
