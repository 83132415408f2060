"""An `AsyncLLM` as a `VllmCore`: starts it, translates requests, outputs, errors and stats."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

from app.engine.vllm.admission import VllmSample
from app.engine.vllm.load_meter import StepStats
from app.engine.vllm.orphan_guard import OrphanGuard
from app.engine.vllm.outputs import VllmOutput
from app.errors import ConfigError, EngineFailedError, InvalidRequestError, ModelError, RequestFailedError
from app.redaction import redacted

SHUTDOWN_S = 5.0


class AsyncLlm:
    """See `VllmCore`. Starts vLLM, which takes from seconds to minutes, on the running event loop.

    Args:
        arguments: for `AsyncEngineArgs`, all of them known.
        folder: of the sockets; is removed at the end.

    Attributes:
        max_model_len, num_blocks, block_size, vocab_size: what vLLM made of model, memory and arguments; one
            of its blocks holds nothing and isn't counted.
        dtype: the weights' number format.
        caches_prefixes: whether it keeps blocks for later prompts: it doesn't with some kinds of models.

    Raises:
        ConfigError: vLLM refuses an argument.
        ModelError: it can't start with this model.
    """

    def __init__(self, arguments: Mapping[str, Any], folder: Path) -> None:
        self.on_step: Callable[[StepStats], None] = lambda stats: None
        try:
            config = AsyncEngineArgs(**arguments).create_engine_config()
        except (ValueError, TypeError, NotImplementedError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            shown = f"{redacted(arguments)}: {_reason(error)}"
            # Without its cause: pydantic's errors show the arguments too.
            raise ConfigError(f"vLLM refuses its engine arguments {shown}") from None
        self._guard = OrphanGuard(folder)
        try:
            with self._guard.watching():
                self._llm = AsyncLLM.from_vllm_config(
                    config,
                    stat_loggers=[lambda vllm_config, index: _StepListener(self._step)],
                    enable_log_requests=bool(arguments.get("enable_log_requests", False)),
                    disable_log_stats=bool(arguments.get("disable_log_stats", False)),
                )
        except Exception as error:
            self._guard.close()
            raise ModelError(f"{arguments['model']}: vLLM can't start; its log says why: {error}") from error
        model, cache = config.model_config, config.cache_config
        self.max_model_len: int = model.max_model_len
        self.num_blocks: int = cache.num_gpu_blocks - 1
        self.block_size: int = cache.block_size
        self.vocab_size: int = model.get_vocab_size()
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.caches_prefixes: bool = cache.enable_prefix_caching

    @property
    def has_died(self) -> bool:
        """See `VllmCore`."""
        return bool(self._llm.errored)

    async def generate(
        self, sample: VllmSample, cache_salt: str | None, priority: int
    ) -> AsyncGenerator[VllmOutput]:
        """See `VllmCore`."""
        prompt = tokens_input(sample.token_ids, cache_salt=cache_salt)
        try:
            params = _sampling_params(sample.fields)
            outputs = self._llm.generate(prompt, params, sample.request_id, priority=priority)
            async with aclosing(outputs):
                async for output in outputs:
                    for each in output.outputs:
                        yield VllmOutput(
                            each.token_ids,
                            each.logprobs,
                            each.finish_reason,
                            output.num_cached_tokens or 0,
                            output.prompt_logprobs,
                        )
        except VLLMClientError as error:
            param = getattr(error, "parameter", None)
            raise InvalidRequestError(f"vLLM refuses the request: {error}", param=param) from None
        except EngineDeadError:
            raise EngineFailedError("vLLM's engine core has died; the rank's log says why") from None
        except EngineGenerateError as error:
            if isinstance(error.__cause__, ValueError):
                raise InvalidRequestError(f"vLLM refuses the request: {error.__cause__}") from None
            raise RequestFailedError("vLLM can't compute the request; the rank's log says why") from error

    async def reset_prefix_cache(self) -> bool:
        """See `VllmCore`."""
        if not await self._llm.reset_prefix_cache():
            return False
        # vLLM publishes with its steps only: one token makes it say so now.
        await self.step_once()
        return True

    async def step_once(self) -> None:
        """See `VllmCore`."""
        params = _sampling_params({"max_tokens": 1, "detokenize": False})
        async for _ in self._llm.generate(tokens_input([0]), params, "step-once"):
            pass

    def shutdown(self) -> None:
        """See `VllmCore`."""
        with suppress(RuntimeError):  # the event loop is closed already
            self._llm.shutdown(timeout=SHUTDOWN_S)
        self._guard.close()

    def _step(self, stats: StepStats) -> None:
        self.on_step(stats)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return str(error)


def _sampling_params(fields: Mapping[str, Any]) -> SamplingParams:
    structure = fields.get("structured_outputs")
    constraint = None if structure is None else StructuredOutputsParams(**structure)
    return SamplingParams(
        **{**fields, "structured_outputs": constraint},
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,  # made for this request alone
    )


class _StepListener(StatLoggerBase):  # type: ignore[misc]  # vLLM's is untyped
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
