"""vLLM's engine arguments: those that the config decides, and those that `engine.vllm` may add.

engine.vllm ──check_given──▶ refused by name, or handed on as it is
the rest of the config ──engine_arguments──▶ model, cache, scheduler, events
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.config import WORKER_COUNTS, AppConfig
from app.errors import ConfigError
from app.redaction import redacted

DECIDED: Mapping[str, str] = {
    "model": "model.path",
    "tokenizer": "model.path",
    "skip_tokenizer_init": "model.path",
    "served_model_name": "model.served_name",
    "dtype": "model.dtype",
    "max_model_len": "model.max_model_len",
    "block_size": "engine.cache.block_size",
    "num_gpu_blocks_override": "engine.cache.num_blocks",
    "gpu_memory_utilization": "engine.cache.memory_fraction",
    "max_num_seqs": "engine.scheduler.max_running_requests",
    "max_num_batched_tokens": "engine.scheduler.max_batch_tokens",
    "max_num_queued_reqs": "engine.scheduler.max_waiting_requests",
    "max_num_queued_tokens": "engine.scheduler.max_waiting_requests",
    "kv_events_config": "kv_events_config",
}
"""vLLM's arguments that another setting decides → that setting."""
FIXED: Mapping[str, object] = {
    "enable_prefix_caching": True,
    "scheduling_policy": "priority",
    "generation_config": "vllm",
    "logprobs_mode": "raw_logprobs",
    "max_logprobs": 20,
    "enable_logging_iteration_details": True,
}
"""What requests, load reports and routing rely on: `engine.vllm` may say the same, but nothing else."""
ALLOWED: Mapping[str, tuple[object, ...]] = {
    "prefill_context_parallel_size": (1,),
    "nnodes": (1,),
    "node_rank": (0,),
    "device_ids": (None,),
    "runner": ("auto", "generate"),
}
"""What `engine.vllm` may say of what a rank doesn't have: GPUs and machines that its replica doesn't ask Ray
for, or a model that doesn't generate."""
_RANKS = "data_parallel"
"""Its DP ranks would lie behind one of ours."""


def check_given(config: AppConfig) -> None:
    """Refuse what `engine.vllm` may not say; needs no vLLM.

    Raises:
        ConfigError: an argument contradicts another setting, or is of no use with this backend.
    """
    engine, given = config.engine, config.engine.vllm
    if config.engine_kind != "vllm":
        if given:
            raise ConfigError(f"engine.vllm = {redacted(given)!r}: allowed only with engine.backend: vllm")
        return
    for name, value in given.items():
        where = f"engine.vllm.{name}"
        if name in DECIDED:
            raise ConfigError(f"{where} = {value!r}: {DECIDED[name]} decides this; set it there")
        if name in FIXED and value != FIXED[name]:
            raise ConfigError(f"{where} = {value!r}: allowed: {FIXED[name]!r}, which kvbeacon relies on")
        if name in ALLOWED and value not in ALLOWED[name]:
            raise ConfigError(f"{where} = {value!r}: allowed: {' or '.join(map(repr, ALLOWED[name]))}")
        if name.startswith(_RANKS):
            raise ConfigError(f"{where} = {value!r}: dp_size decides how many ranks there are; set it there")
    size = given.get("kv_cache_memory_bytes")
    for name, value in engine.cache.model_dump(
        exclude_unset=True, include={"num_blocks", "memory_fraction"}
    ).items():
        if size is not None and value is not None:
            where = f"engine.vllm.kv_cache_memory_bytes = {size!r}"
            raise ConfigError(f"{where}: engine.cache.{name} decides this; set one of them")
    for name in WORKER_COUNTS:
        size = given.get(name, 1)
        if type(size) is not int or size < 1:
            raise ConfigError(f"engine.vllm.{name} = {size!r}: allowed: an integer, at least 1")
    if engine.cache.eviction != "lru":
        where = f"engine.cache.eviction = {engine.cache.eviction!r}"
        raise ConfigError(f"{where}: vLLM has an eviction of its own; allowed: 'lru'")
    if engine.kernels != "auto":
        raise ConfigError(f"engine.kernels = {engine.kernels!r}: vLLM has its own kernels; allowed: 'auto'")


def check_installed() -> None:
    """Refuse a Python without vLLM.

    Raises:
        ConfigError: this is one.
    """
    if find_spec("vllm") is None:
        raise ConfigError("engine.backend = 'vllm': vLLM isn't installed here; pip install 'kvbeacon[vllm]'")


def check_known(given: Collection[str], known: Collection[str]) -> None:
    """Refuse arguments that vLLM doesn't have.

    Raises:
        ConfigError: one of `given` isn't in `known`; names the nearest.
    """
    for name in given:
        if name not in known:
            near = get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"engine.vllm.{name}: this vLLM has no such engine argument{hint}")


def engine_arguments(
    config: AppConfig,
    model_dir: Path,
    *,
    on_cpu: bool,
    available_bytes: int | None = None,
    events: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """All arguments for vLLM's `AsyncEngineArgs`.

    Args:
        config: checked by `check_given`.
        model_dir: the model, in the Hugging Face layout.
        on_cpu: whether vLLM computes on a CPU.
        available_bytes: memory of the CPU's machine that is free for the KV cache; None leaves its size to
            vLLM's environment variable.
        events: vLLM's `KVEventsConfig`; None publishes nothing.
    """
    cache, scheduler = config.engine.cache, config.engine.scheduler
    arguments: dict[str, Any] = {
        **FIXED,
        "model": str(model_dir),
        "served_model_name": config.model.served_name,
        "dtype": config.model.dtype,
        "block_size": cache.block_size,
        # More sequences than tokens in the budget would leave some without their one token.
        "max_num_seqs": min(scheduler.max_running_requests, scheduler.max_batch_tokens),
        "max_num_batched_tokens": scheduler.max_batch_tokens,
        "kv_events_config": events,
        "disable_log_stats": True,  # those that vLLM logs itself; load reports have their own
        # As much of the context as fits, where it isn't set.
        "max_model_len": config.model.max_model_len or -1,
    }
    if cache.num_blocks is not None:
        if config.model.max_model_len is not None:
            # Where a longest request wouldn't fit, vLLM doesn't start; such a request is refused here.
            in_cache = cache.num_blocks * cache.block_size
            arguments["max_model_len"] = min(config.model.max_model_len, in_cache)
        arguments["num_gpu_blocks_override"] = cache.num_blocks + 1  # one of its blocks holds nothing
    arguments.update(_memory(config, on_cpu=on_cpu, available_bytes=available_bytes))
    if config.num_engine_workers > 1:
        arguments["distributed_executor_backend"] = "mp"  # and not what it finds in its surroundings
    structured = config.engine.vllm.get("structured_outputs_config", {})
    if isinstance(structured, dict):  # whose dialects are ours, unless it says otherwise
        structured = {"backend": "guidance"} | structured
    return arguments | config.engine.vllm | {"structured_outputs_config": structured}


def _memory(config: AppConfig, *, on_cpu: bool, available_bytes: int | None) -> dict[str, Any]:
    cache = config.engine.cache
    if on_cpu:
        if available_bytes is None:
            return {}
        return {"kv_cache_memory_bytes": int(available_bytes * cache.memory_fraction)}
    # vLLM's fraction is of all memory, weights included: the default of ours would be none at all.
    if "memory_fraction" in cache.model_fields_set:
        return {"gpu_memory_utilization": cache.memory_fraction}
    return {}
