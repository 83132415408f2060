"""vLLM's stats after each of its steps, as our load reports want them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

from app.engine.vllm.load_meter import StepStats


class StepListener(StatLoggerBase):  # type: ignore[misc]  # vLLM's is untyped
    """Hands on what the scheduler says; called on the event loop, once per step that says anything."""

    def __init__(self, on_step: Callable[[StepStats], None]) -> None:
        self._on_step = on_step

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """See `StatLoggerBase`."""
        if scheduler_stats is None:
            return
        details = scheduler_stats.iteration_details
        self._on_step(
            StepStats(
                num_running=scheduler_stats.num_running_reqs,
                cache_usage=scheduler_stats.kv_cache_usage,
                num_prefill_tokens=details.num_ctx_tokens if details else 0,
                num_decode_tokens=details.num_generation_tokens if details else 0,
            )
        )

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
