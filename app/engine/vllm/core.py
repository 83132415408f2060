"""What the rank's side needs of vLLM: the seam between them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from app.engine.vllm.admission import VllmSample
from app.engine.vllm.load_meter import StepStats
from app.engine.vllm.outputs import VllmOutput


class VllmCore(Protocol):
    """An `AsyncLLM` on the running event loop.

    Attributes:
        on_step: called with the stats of each of its steps.
    """

    on_step: Callable[[StepStats], None]

    @property
    def has_died(self) -> bool:
        """Whether its engine core is gone, and with it all requests."""
        ...

    def generate(
        self, sample: VllmSample, cache_salt: str | None, priority: int
    ) -> AsyncGenerator[VllmOutput]:
        """What is added to a sample, step by step. Closing it early aborts the sample.

        Raises:
            RequestError: vLLM refuses the sample, can't compute it, or has died.
        """
        ...

    async def reset_prefix_cache(self) -> bool:
        """Forget all cached blocks and publish that; False: not while requests run."""
        ...

    async def step_once(self) -> None:
        """Compute one token that no request gets; no block is kept of it."""
        ...

    def shutdown(self) -> None:
        """End its processes."""
        ...
