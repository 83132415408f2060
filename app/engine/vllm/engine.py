"""vLLM's `RankEngine`: requests to vLLM, its outputs, events and load back. All of it on the event loop.

admit ─▶ samples ─▶ a task each: generate ─▶ chunks ─▶ OutputStream
                      │
vLLM's steps ─▶ LoadMeter ─▶ load reports      vLLM's events ─▶ relay ─▶ cache events
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from app.engine.interface import EngineDescription, EngineListener, EngineStatus, Result
from app.engine.output_streams import OutputStream, OutputStreams
from app.engine.relay.cached_hashes import CachedHashes
from app.engine.relay.feed import ForeignFeed
from app.engine.relay.feed_status import ForeignPublisher
from app.engine.relay.relay import Relay
from app.engine.vllm.admission import Admission, VllmSample, check_samples
from app.engine.vllm.core import VllmCore
from app.engine.vllm.load_meter import LiveSample, LoadMeter, StepStats
from app.errors import EngineFailedError, QueueFullError, RequestError, RequestFailedError
from app.events.schema import CacheEvent
from app.events.snapshot import CachedBlock
from app.generation import GenerateRequest, SamplingParams, StructuredOutput

logger = logging.getLogger(__name__)

LOAD_HEARTBEAT_S = 1.0
STEPS_PER_LOAD_REPORT = 4
MAX_RETRY_AFTER_S = 60
_WATCH_S = 0.1
_RESET_S = 5.0


class VllmEngine:
    """Serves one rank with vLLM.

    Args:
        core: started; this ends it.
        description: of model and cache.
        dp_rank: the rank's number, for load reports.
        admission: makes samples of requests.
        meter: counts them.
        publisher: where vLLM publishes; None: nowhere, so nothing is known of its cache.
        block_size: tokens of a block.
        max_waiting: samples that may wait.
        check_structure: compiles a structured output; raises InvalidRequestError; on any thread.

    Attributes:
        description, load: see `RankEngine`.
    """

    def __init__(
        self,
        core: VllmCore,
        description: EngineDescription,
        dp_rank: int,
        *,
        admission: Admission,
        meter: LoadMeter,
        publisher: ForeignPublisher | None,
        block_size: int,
        max_waiting: int,
        check_structure: Callable[[StructuredOutput], object],
    ) -> None:
        self.description = description
        self.load = meter.stat()
        self._core = core
        self._dp_rank = dp_rank
        self._admission = admission
        self._meter = meter
        self._max_waiting = max_waiting
        self._check_structure = check_structure
        self._listener: EngineListener | None = None
        self._streams = OutputStreams(self._drop)
        self._tasks: dict[OutputStream, list[asyncio.Task[None]]] = {}
        """What computes each stream's samples."""
        self._background: list[asyncio.Task[None]] = []
        self._cached = CachedHashes(block_size)
        self._relay = Relay(block_size, hashes="opaque", source=f"vLLM of rank {dp_rank}")
        self._feed: ForeignFeed | None = None
        if publisher is not None:
            name = f"vLLM of rank {dp_rank}"
            # Should events ever be lost for good, an empty cache is known again.
            flush = core.reset_prefix_cache
            self._feed = ForeignFeed(publisher, self._relay, self._publish, name=name, flush=flush)
        self._has_ended = False
        self._admitted: list[str] = []
        self._is_report_due = False
        self._steps_since_report = 0
        self._reported_at = -math.inf
        self._reported_busy = False
        core.on_step = self._step

    @property
    def status(self) -> EngineStatus:
        """See `RankEngine`."""
        if self._feed is None:
            return EngineStatus()
        feed = self._feed.status
        is_known = feed.state == "whole"
        return EngineStatus(
            partial_cache=None if is_known else f"vLLM's events: {feed.state}: {feed.reason}",
            foreign_events=feed.as_json(),
        )

    @property
    def num_cached_blocks(self) -> int:
        """See `RankEngine`."""
        return len(self._cached)

    def renumber(self, dp_rank: int) -> None:
        """See `RankEngine`."""
        self._dp_rank = self._meter.dp_rank = dp_rank

    def start(self, listener: EngineListener | None) -> None:
        """See `RankEngine`."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        if self._feed is not None:
            self._feed.start()
        self._spawn(self._watch())
        self._spawn(self._warm_up())

    def stop(self) -> None:
        """See `RankEngine`. Any thread may call it."""
        if not self._has_ended:
            self._end()
        self._core.shutdown()

    def check_health(self) -> None:
        """See `RankEngine`."""
        if self._has_ended or self._core.has_died:
            raise self._stopped_error()

    async def prepare(self, params: SamplingParams) -> None:
        """See `RankEngine`. It compiles here only to be refused as by the torch engine."""
        if params.structured_output is not None:
            await asyncio.to_thread(self._check_structure, params.structured_output)

    def admit(self, request: GenerateRequest) -> OutputStream:
        """See `RankEngine`."""
        self.check_health()
        earlier = request.earlier_outputs
        stream = self._streams.open(request.request_id, request.n if earlier is None else len(earlier))
        try:
            self._check_queue(request)
            samples = self._admission.samples(request)
        except RequestError as error:
            self._streams.deliver([(stream, error)])
        else:
            self._begin(request, samples, stream)
        # A refused request is acknowledged too: a router reserved work for it.
        self._admitted.append(request.request_id)
        self._report_soon()
        return stream

    async def reset_cache(self) -> bool:
        """See `RankEngine`. vLLM refuses while requests run."""
        self.check_health()
        num_cleared = self._relay.num_cleared
        if not await self._core.reset_prefix_cache():
            return False
        if self._feed is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_RESET_S):
                    while self._relay.num_cleared == num_cleared:
                        await asyncio.sleep(0.01)
        return True

    def content(self, read: Callable[[Sequence[CachedBlock]], Result]) -> Future[Result]:
        """See `RankEngine`."""
        self.check_health()
        if self._feed is not None:
            return self._feed.content(read)
        nothing: Future[Result] = Future()
        nothing.set_result(read([]))
        return nothing

    # ---- requests

    def _check_queue(self, request: GenerateRequest) -> None:
        check_samples(request.n, self._max_waiting)
        num_samples = request.n if request.earlier_outputs is None else len(request.earlier_outputs)
        waiting = self._meter.num_waiting
        if waiting + num_samples > self._max_waiting:
            wait_s = self._meter.wait_s
            raise QueueFullError(
                f"{waiting} requests wait; at most {self._max_waiting} may",
                retry_after_s=min(max(1, math.ceil(min(wait_s, MAX_RETRY_AFTER_S))), MAX_RETRY_AFTER_S),
            )

    def _begin(self, request: GenerateRequest, samples: list[VllmSample], stream: OutputStream) -> None:
        if request.cache_salt is not None:
            self._relay.add_salt(request.cache_salt)
        tasks = self._tasks[stream] = []
        for sample in samples:
            num_tokens = len(sample.token_ids)
            if sample.num_private_tokens is None:
                num_cached = self._cached.num_cached_tokens(sample.token_ids, request.cache_salt)
            else:
                num_cached = num_tokens - sample.num_private_tokens
            live = self._meter.add(num_tokens, num_cached)
            task = self._loop.create_task(self._serve(request, sample, live, stream))
            tasks.append(task)
            # A task that is cancelled before its first step runs nothing of its own, no `finally` either.
            task.add_done_callback(partial(self._ended, live, stream))

    async def _serve(
        self, request: GenerateRequest, sample: VllmSample, live: LiveSample, stream: OutputStream
    ) -> None:
        """Compute one sample; an error ends the stream of the others too."""
        try:
            outputs = self._core.generate(sample, request.cache_salt, request.priority)
            async with aclosing(outputs):
                async for output in outputs:
                    self._meter.first_token(live)
                    chunk = sample.reader.read(output)
                    self._streams.deliver([(stream, chunk)])
                    if chunk.finish_reason is not None:
                        break
        except RequestError as error:
            self._fail(stream, error)
        except Exception:
            logger.exception("rank %d can't compute request %r", self._dp_rank, request.request_id)
            self._fail(stream, RequestFailedError("vLLM can't compute the request; the rank's log says why"))

    def _ended(self, live: LiveSample, stream: OutputStream, task: asyncio.Task[None]) -> None:
        """What computed a sample has ended, in whatever way."""
        self._meter.remove(live)
        tasks = [each for each in self._tasks.get(stream, ()) if each is not task]
        if tasks:
            self._tasks[stream] = tasks
        else:
            self._tasks.pop(stream, None)
        self._report_soon()

    def _fail(self, stream: OutputStream, error: RequestError) -> None:
        self._streams.deliver([(stream, error)])
        self._drop(stream)

    def _drop(self, stream: OutputStream) -> None:
        """Abort what computes the stream's samples, but for the task that calls this."""
        current = asyncio.current_task()
        for task in self._tasks.get(stream, ()):
            if task is not current:
                task.cancel()

    # ---- what vLLM says

    def _publish(self, events: Sequence[CacheEvent]) -> None:
        self._cached.apply(events)
        if self._listener is not None and not self._has_ended:
            self._listener.publish(events)

    def _step(self, stats: StepStats) -> None:
        self._meter.step(stats)
        self._steps_since_report += 1
        if self._steps_since_report >= STEPS_PER_LOAD_REPORT:
            self._report()

    # ---- load

    def _report_soon(self) -> None:
        """Report an admission, or idleness, in this turn of the loop; several at once."""
        if not self._is_report_due:
            self._is_report_due = True
            self._loop.call_soon(self._report_if_due)

    def _report_if_due(self) -> None:
        self._is_report_due = False
        became_idle = self._reported_busy and not self._meter.is_busy
        is_due = time.monotonic() - self._reported_at >= LOAD_HEARTBEAT_S
        if self._admitted or became_idle or is_due:
            self._report()

    def _report(self) -> None:
        self.load = self._meter.stat()
        if self._listener is not None and not self._has_ended:
            self._listener.publish_load(self.load, self._admitted)
        self._reported_busy = self._meter.is_busy
        self._admitted = []
        self._steps_since_report = 0
        self._reported_at = time.monotonic()

    # ---- life cycle

    async def _watch(self) -> None:
        """The heartbeat; and when its engine core dies, vLLM doesn't tell all who wait."""
        while not self._core.has_died:
            self._report_if_due()
            await asyncio.sleep(_WATCH_S)
        logger.error("vLLM's engine core of rank %d has died", self._dp_rank)
        self._end()

    async def _warm_up(self) -> None:
        """The first step may take seconds, which would be measured as the first request's."""
        try:
            await self._core.step_once()
        except Exception:
            logger.exception("vLLM of rank %d can't compute a token", self._dp_rank)

    def _end(self) -> None:
        """Fail what is live; on the event loop, or after it was closed."""
        self._has_ended = True
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._fail_all)

    def _fail_all(self) -> None:
        self._streams.fail_all(self._stopped_error)
        for tasks in list(self._tasks.values()):
            for task in tasks:
                task.cancel()
        for task in self._background:
            task.cancel()
        if self._feed is not None:
            self._spawn(self._feed.close())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.append(self._loop.create_task(work))

    def _stopped_error(self) -> EngineFailedError:
        return EngineFailedError(f"the engine of rank {self._dp_rank} has stopped; its log says why")
