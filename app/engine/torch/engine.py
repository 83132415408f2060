"""The engine of one rank: token ids in, token ids and cache events out.

Single-threaded: all calls come from one thread. Knows nothing of text, HTTP, Ray or sockets.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from app.engine.cache.prefix_cache import PrefixCache
from app.engine.limits import Limits
from app.engine.torch.admission import Admission
from app.engine.torch.memory import kv_cache
from app.engine.torch.memory.available import check_weights_fit
from app.engine.torch.memory.placement import resolve_device, resolve_dtype, resolve_kernels
from app.engine.torch.model.architecture import Architecture, read_architecture
from app.engine.torch.model.decoder import Decoder
from app.engine.torch.model.runner import ModelRunner
from app.engine.torch.model.weights import load_weights
from app.engine.torch.outputs import RequestOutput, StepOutput
from app.engine.torch.request import NewGrammar, NewTextStream, Request
from app.engine.torch.sampling.prompt_logprobs import score_prompts
from app.engine.torch.sampling.sampler import Sampled, Sampler
from app.engine.torch.schedule import Schedule
from app.engine.torch.scheduler import Scheduler
from app.engine.torch.stopping import append
from app.errors import InvalidRequestError, LiveRequestIdError, QueueFullError
from app.events.schema import CacheEvent, LoadStat
from app.events.snapshot import CachedBlock
from app.generation import FinishReason, GenerateRequest, SamplingParams
from app.models.context import resolve_max_model_len
from app.settings.engine import EngineConfig
from app.settings.model import Device, Dtype

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER_S = 60


class Engine:
    """Continuous batching over a paged KV cache with prefix reuse."""

    def __init__(
        self,
        config: EngineConfig,
        architecture: Architecture,
        runner: ModelRunner,
        *,
        model_dir: Path,
        num_blocks: int,
        max_model_len: int,
        eos_token_ids: Sequence[int] | None = None,
        new_text_stream: NewTextStream | None = None,
        new_grammar: NewGrammar | None = None,
    ) -> None:
        self.eos_token_ids = tuple(architecture.eos_token_ids if eos_token_ids is None else eos_token_ids)
        """Tokens with which the model ends its output."""
        self.model_dir = model_dir
        """Where the model was read from."""
        self._config = config
        self._runner = runner
        self._sampler = Sampler(runner.kernels.top_k_top_p, self.eos_token_ids)
        self._limits = Limits(max_model_len, num_blocks, config.cache.block_size, architecture.vocab_size)
        self._admission = Admission(self._limits, self.eos_token_ids, new_text_stream, new_grammar)
        self._cache = PrefixCache(num_blocks, config.cache.block_size)
        self._scheduler = Scheduler(config.scheduler, self._cache)
        self._samples: dict[str, list[Request]] = {}  # of each live request, those that go on
        self._num_prefilled_tokens = 0
        self._prefill_busy_us = 0.0

    @classmethod
    def load(
        cls,
        model_dir: Path,
        config: EngineConfig,
        *,
        device: Device = "auto",
        dtype: Dtype = "auto",
        max_model_len: int | None = None,
        eos_token_ids: Sequence[int] | None = None,
        new_text_stream: NewTextStream | None = None,
        new_grammar: NewGrammar | None = None,
    ) -> Engine:
        """An engine for the model in `model_dir`, a folder in the Hugging Face layout.

        `eos_token_ids` end an output: those that `config.json` or `generation_config.json` names, unless the
        tokenizer's are given, which has one where these have none. `new_text_stream` finds stop strings,
        `new_grammar` makes structured output; without them requests that need them are refused.

        Raises:
            ModelNotFoundError, UnsupportedModelError, InsufficientMemoryError: the model can't be served.
            ConfigError: no such device, kernels that can't run on it, or `max_model_len` isn't from 2 to the
                model's context.
        """
        architecture = read_architecture(model_dir)
        max_model_len = resolve_max_model_len(max_model_len, architecture.max_position_embeddings)
        on = resolve_device(device)
        in_dtype = resolve_dtype(dtype, on, architecture.checkpoint_dtype)
        kernels = resolve_kernels(config.kernels, on)
        check_weights_fit(model_dir, architecture, on, in_dtype)
        weights = load_weights(model_dir, architecture, kernels, on, in_dtype)
        num_blocks = kv_cache.count_blocks(config.cache, architecture, on, in_dtype)
        cache = kv_cache.allocate(architecture, num_blocks, config.cache.block_size, on, in_dtype)
        logger.info(
            "%s: %s on %s, %d blocks of %d tokens", model_dir, in_dtype, on, num_blocks, cache.shape[3]
        )
        runner = ModelRunner(Decoder(architecture, weights, kernels, max_model_len), kernels, cache)
        return cls(
            config,
            architecture,
            runner,
            model_dir=model_dir,
            num_blocks=num_blocks,
            max_model_len=max_model_len,
            eos_token_ids=eos_token_ids,
            new_text_stream=new_text_stream,
            new_grammar=new_grammar,
        )

    @property
    def block_size(self) -> int:
        """Tokens per cache block."""
        return self._cache.block_size

    @property
    def num_blocks(self) -> int:
        """Blocks in the KV cache."""
        return self._cache.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no running request holds; their contents may be cached."""
        return self._cache.num_free_blocks

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that a new prompt could hit."""
        return self._cache.num_cached_blocks

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._runner.device

    @property
    def kernels_name(self) -> str:
        """The kernels' backend."""
        return self._runner.kernels.name

    @property
    def dtype(self) -> torch.dtype:
        """The number format of weights and KV cache."""
        return self._runner.dtype

    @property
    def stall_timeout_s(self) -> float:
        """How much longer than the longest one so far a step may take."""
        return self._config.stall_timeout_s

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together at most."""
        return self._limits.max_model_len

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of a prompt at most."""
        return self._limits.max_prompt_tokens

    def prepare(self, params: SamplingParams) -> None:
        """Do what `add_request` may need long for, so that it finds it done. Callable from any thread.

        Raises:
            InvalidRequestError: the structured output that `params` ask for doesn't compile.
        """
        self._admission.prepare(params)

    def add_request(self, request: GenerateRequest) -> None:
        """Let a request wait for its turn.

        Each sample is a place in the queue. The prompt is computed once. Every sample's seed comes from the
        request's. A sample with earlier output recomputes it with the prompt, as after a preemption, and goes
        on with the tokens that it would have got where it began, as far as both engines compute alike.

        Raises:
            LiveRequestIdError: a request with this id is live.
            InvalidRequestError: the prompt is empty or has an unknown token, `n` is
                not from 1 to what may wait, or anything that `Admission.samples` refuses.
            PromptTooLongError: longer than the context, or than the cache can ever hold.
            QueueFullError: too many requests wait.
        """
        if self.is_live(request.request_id):
            raise LiveRequestIdError(request.request_id)
        self._limits.check_prompt(request.prompt_token_ids)
        self._check_queue(request)
        samples = self._admission.samples(request)
        self._scheduler.add(samples)
        self._samples[request.request_id] = samples

    def abort(self, request_id: str) -> bool:
        """Forget a request, all of its samples, and free their blocks at once; False if it isn't live.

        No output follows.
        """
        samples = self._samples.pop(request_id, [])
        for request in samples:
            self._scheduler.remove(request)
        return bool(samples)

    def is_live(self, request_id: str) -> bool:
        """Whether a sample of this request waits or runs."""
        return request_id in self._samples

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self._scheduler.num_running + self._scheduler.num_waiting > 0

    def step(self) -> StepOutput:
        """Compute one batch: up to one new token for every running request, or a chunk of its prompt."""
        started = time.perf_counter()
        schedule = self._scheduler.schedule()
        outputs: list[RequestOutput] = []
        if schedule.scheduled:
            logits, scored = self._runner.run(schedule.scheduled)
            score_prompts(schedule.scheduled, scored, self._runner.logits)
            self._scheduler.complete(schedule)
            sampled = self._sampler.sample(logits, schedule.sampled)
            outputs = [self._advance(*pair) for pair in zip(schedule.sampled, sampled, strict=True)]
            self._account(schedule, time.perf_counter() - started)
        return StepOutput(outputs, self.drain_events())

    def drain_events(self) -> list[CacheEvent]:
        """Cache changes since the last step or call, in order."""
        return self._cache.drain_events()

    def cached_blocks(self) -> list[CachedBlock]:
        """Everything that a new prompt could hit, parents before children."""
        return self._cache.cached_blocks()

    def reset_cache(self) -> None:
        """Forget all cached contents. Running requests go on with their blocks, which no other finds."""
        self._cache.reset()

    def load_stat(self, dp_rank: int) -> LoadStat:
        """The load now. `num_tokens` counts running requests' blocks, `num_total_tokens` also what waits."""
        num_tokens = (self.num_blocks - self.num_free_blocks) * self.block_size
        return LoadStat(
            num_running_reqs=self._scheduler.num_running,
            num_waiting_reqs=self._scheduler.num_waiting,
            num_tokens=num_tokens,
            max_total_num_tokens=self.num_blocks * self.block_size,
            dp_rank=dp_rank,
            num_waiting_uncached_tokens=self._scheduler.num_pending_prefill_tokens,
            num_total_tokens=num_tokens + self._scheduler.num_waiting_tokens,
            max_running_requests=self._scheduler.max_running_requests,
            total_prefill_uncached_tokens=self._num_prefilled_tokens,
            total_prefill_busy_us=round(self._prefill_busy_us),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is free, cached and held exactly as counted."""
        self._scheduler.check_integrity()

    def _check_queue(self, request: GenerateRequest) -> None:
        """Raise unless the request's samples may wait."""
        allowed = self._config.scheduler.max_waiting_requests
        if not 1 <= request.n <= allowed:
            message = f"n = {request.n}; allowed: 1 to {allowed}, as many as may wait"
            raise InvalidRequestError(message, param="n")
        num_samples = request.n if request.earlier_outputs is None else len(request.earlier_outputs)
        if self._scheduler.num_waiting + num_samples > allowed:
            raise self._queue_full()

    def _queue_full(self) -> QueueFullError:
        tokens_per_us = (
            self._num_prefilled_tokens / self._prefill_busy_us if self._prefill_busy_us else math.inf
        )
        wait_s = math.ceil(self._scheduler.num_pending_prefill_tokens / tokens_per_us / 1e6)
        return QueueFullError(
            f"{self._scheduler.num_waiting} requests wait; at most "
            f"{self._config.scheduler.max_waiting_requests} may",
            retry_after_s=min(max(1, wait_s), MAX_RETRY_AFTER_S),
        )

    def _advance(self, request: Request, sampled: Sampled) -> RequestOutput:
        """Append a request's next token and free its blocks if it was the last."""
        new_token_ids = [] if sampled.token_id is None else [sampled.token_id]
        prompt_logprobs = request.prompt_logprobs if request.num_output_tokens == 0 else None
        finish_reason: FinishReason | None = "error"
        if sampled.token_id is not None:
            finish_reason = append(request, sampled.token_id, self.eos_token_ids)
        if finish_reason is not None:
            self._end(request)
        assert request.num_cached_tokens is not None, "a request ran without being admitted"
        return RequestOutput(
            request.request_id,
            request.index,
            new_token_ids,
            finish_reason,
            request.num_prompt_tokens,
            request.num_cached_tokens,
            sampled.error,
            None if sampled.logprobs is None else [sampled.logprobs],
            prompt_logprobs,
        )

    def _end(self, request: Request) -> None:
        """Free a finished sample's blocks; with its last sample the request's id is free too."""
        self._scheduler.remove(request)
        samples = self._samples[request.request_id]
        samples.remove(request)
        if not samples:
            del self._samples[request.request_id]

    def _account(self, schedule: Schedule, seconds: float) -> None:
        """A mixed step's time belongs to prefill by its share of the tokens."""
        num_tokens = schedule.num_prefill_tokens + schedule.num_decode_tokens
        self._num_prefilled_tokens += schedule.num_prefill_tokens
        self._prefill_busy_us += seconds * 1e6 * schedule.num_prefill_tokens / num_tokens
