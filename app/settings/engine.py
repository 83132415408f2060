"""The engine of one rank: its cache, its scheduler, its kernels."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.settings.base import PositiveFloat, PositiveInt, Settings

KernelBackend = Literal["auto", "torch", "cpu", "triton"]
Eviction = Literal["lru", "segmented"]


class CacheConfig(Settings):
    """The paged KV cache of one rank."""

    block_size: PositiveInt = Field(16, description="Tokens per block.")
    num_blocks: PositiveInt | None = Field(
        None, description="Blocks per rank. Default: as many as `memory_fraction` holds."
    )
    memory_fraction: float = Field(
        0.1, gt=0, le=0.98, description="Share of the device memory free after loading the weights."
    )
    eviction: Eviction = Field(
        "lru",
        description="Which blocks go first when the cache is full. `lru`: the least recently used. "
        "`segmented`: the same, but up to a quarter of the cache, of blocks that were used again, goes last; "
        "so a batch over documents that are read once evicts itself, not conversations.",
    )


class SchedulerConfig(Settings):
    """How one rank batches and admits requests."""

    max_running_requests: PositiveInt = Field(64, description="Requests in one batch at most.")
    max_waiting_requests: PositiveInt = Field(512, description="A request beyond these is answered 429.")
    max_batch_tokens: PositiveInt = Field(
        512, description="Token budget of one step; longer prompts are computed in chunks of it."
    )


class EngineConfig(Settings):
    """The engine of one rank."""

    backend: Literal["torch", "vllm"] = Field(
        "torch", description="`torch` is ours; `vllm` must be installed."
    )
    vllm: dict[str, Any] = Field(
        {}, description="vLLM's engine arguments by their names, for `backend: vllm`; see docs/engines.md."
    )
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    kernels: KernelBackend = Field(
        "auto", description="Implementation of the kernels. `auto` takes what is made for the device."
    )
    num_threads: PositiveInt | None = Field(
        None, description="Torch threads per rank on a cpu. Default: `resources.num_cpus`, at least 1."
    )
    stall_timeout_s: PositiveFloat = Field(
        10.0,
        description="A rank that has work and makes no step for so long, beyond what its longest step took, "
        "gets no requests, and loses those that it has.",
    )
    drain_timeout_s: float = Field(
        30.0,
        ge=0,
        description="Seconds that a rank which is replaced or no longer needed may go on with its requests; "
        "then other ranks take them over. 0: they do at once.",
    )
