"""The thread that owns a rank's engine, and the asyncio side that talks to it: torch's `RankEngine`.

    event loop ──inbox──▶ thread: run what the inbox holds → step → publish events → deliver → report load
        ▲────────────────── call_soon_threadsafe, once per step ──────────────────┘

Everything that touches the engine runs on this thread, between steps; the event loop never waits for one.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any

from app.engine.interface import EngineDescription, EngineListener, EngineStatus, Result
from app.engine.output_streams import OutputStream, OutputStreams, StreamItem
from app.engine.step_watch import StepWatch
from app.engine.torch.engine import Engine
from app.engine.torch.outputs import RequestOutput
from app.errors import EngineFailedError, RequestError, RequestFailedError
from app.events.schema import CacheEvent
from app.events.snapshot import CachedBlock
from app.generation import GenerateRequest, SamplingParams, TokenChunk

logger = logging.getLogger(__name__)

LOAD_HEARTBEAT_S = 1.0
STEPS_PER_LOAD_REPORT = 4


class EngineThread:
    """Runs one engine on a thread of its own and streams its output into asyncio: a `RankEngine`.

    Args:
        engine: owned by the thread from `start` on.
        dp_rank: the rank's number, for load reports.

    Attributes:
        description, load, num_cached_blocks: see `RankEngine`.
    """

    def __init__(self, engine: Engine, dp_rank: int) -> None:
        self.description = EngineDescription(
            model_dir=str(engine.model_dir),
            max_model_len=engine.max_model_len,
            max_prompt_tokens=engine.max_prompt_tokens,
            num_blocks=engine.num_blocks,
            device=str(engine.device),
            dtype=str(engine.dtype).removeprefix("torch."),
            kernels=engine.kernels_name,
        )
        self.load = engine.load_stat(dp_rank)
        self.num_cached_blocks = 0
        self._engine = engine
        self._listener: EngineListener | None = None
        self._dp_rank = dp_rank
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams = OutputStreams(lambda stream: self._inbox.put(partial(self._drop, stream)))
        self._live: dict[str, OutputStream] = {}
        """Where each request that the engine has streams to; the engine's thread alone touches it."""
        self._calls: set[Future[Any]] = set()
        self._thread = threading.Thread(target=self._run, name=f"engine-{dp_rank}", daemon=True)
        self._watch = StepWatch(engine.stall_timeout_s)
        """All that the thread does between two waits for work counts as a step."""
        self._stopping = False
        self._ended = False
        self._admitted: list[str] = []
        self._steps_since_report = 0
        self._reported_at = 0.0
        self._reported_busy = False

    # Called on the event loop.

    def renumber(self, dp_rank: int) -> None:
        """See `RankEngine`; the next load report has it."""
        self._dp_rank = dp_rank

    @property
    def status(self) -> EngineStatus:
        """See `RankEngine`."""
        return EngineStatus(unavailable=self._watch.fault())

    def start(self, listener: EngineListener | None) -> None:
        """Start the thread, on which `listener` is called."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step, if that ends in time; safe to call twice."""
        self._stopping = True
        self._inbox.put(lambda: None)
        self._thread.join(self._watch.limit_s)
        if self._thread.is_alive():
            logger.error("the engine of rank %d stands still; it ends with its process", self._dp_rank)

    def check_health(self) -> None:
        """See `RankEngine`: once the thread has ended, is about to, or has stood still for long."""
        if self._stopping or self._ended or not self._thread.is_alive():
            raise self._stopped_error()
        if (fault := self._watch.lasting_fault()) is not None:
            raise EngineFailedError(f"the engine of rank {self._dp_rank} stands still: {fault}")

    async def prepare(self, params: SamplingParams) -> None:
        """See `RankEngine`. A grammar compiles on a thread of its own."""
        if params.structured_output is not None:
            await asyncio.to_thread(self._engine.prepare, params)

    def admit(self, request: GenerateRequest) -> OutputStream:
        """See `RankEngine`."""
        self.check_health()
        earlier = request.earlier_outputs
        stream = self._streams.open(request.request_id, request.n if earlier is None else len(earlier))
        self._inbox.put(partial(self._add, request, stream))
        return stream

    async def reset_cache(self) -> bool:
        """See `RankEngine`. Running requests go on with their blocks, which no other finds."""
        await asyncio.wrap_future(self.submit(Engine.reset_cache))
        return True

    # Called on any thread.

    def content(self, read: Callable[[Sequence[CachedBlock]], Result]) -> Future[Result]:
        """See `RankEngine`."""

        def take(engine: Engine) -> Result:
            # What changed since the last step has no sequence number yet, but is in the cache's content.
            self._publish(engine.drain_events())
            return read(engine.cached_blocks())

        return self.submit(take)

    def submit(self, function: Callable[[Engine], Result]) -> Future[Result]:
        """What `function` returns, or raises, when the thread runs it between two steps.

        Raises (at once, or as the future's result):
            EngineFailedError: the engine has stopped.
        """
        self.check_health()
        future: Future[Result] = Future()
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(self._engine))
                except Exception as error:
                    future.set_exception(error)

        self._inbox.put(run)
        if self._ended:  # perhaps since its health was checked, and then nothing runs the inbox any more
            self._fail(future)
        return future

    def _stopped_error(self) -> EngineFailedError:
        return EngineFailedError(f"the engine of rank {self._dp_rank} has stopped; its log says why")

    def _fail(self, call: Future[Any]) -> None:
        with suppress(InvalidStateError):  # answered or cancelled already
            call.set_exception(self._stopped_error())

    # Called on the engine's thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._work_inbox()
                self._watch.begin()
                if self._admitted:  # before a step, which may be long
                    self._report_load()
                has_work = self._engine.has_work()
                if has_work:
                    self._step()
                self._report_load()
                self._watch.end(has_computed=has_work)
        except BaseException:
            logger.exception("the engine of rank %d stopped", self._dp_rank)
        finally:
            self._ended = True
            for call in list(self._calls):
                self._fail(call)
            with suppress(RuntimeError):  # the loop is closed, and no stream is read any more
                self._loop.call_soon_threadsafe(self._streams.fail_all, self._stopped_error)

    def _work_inbox(self) -> None:
        """Run everything that waits; block for more only when the engine has nothing to do."""
        try:
            run = self._inbox.get(block=not self._engine.has_work(), timeout=LOAD_HEARTBEAT_S)
            self._watch.begin()
            while not self._stopping:
                run()
                run = self._inbox.get_nowait()
        except queue.Empty:
            pass
        self._publish(self._engine.drain_events())

    def _step(self) -> None:
        result = self._engine.step()
        self._publish(result.events)
        self._steps_since_report += 1
        items = [(self._live[output.request_id], _item(output)) for output in result.outputs]
        for output in result.outputs:
            if output.finish_reason == "error":
                self._engine.abort(output.request_id)  # the error ends the stream of its other samples too
            if not self._engine.is_live(output.request_id):
                self._live.pop(output.request_id, None)
        if items:
            self._deliver(items)

    def _add(self, request: GenerateRequest, stream: OutputStream) -> None:
        try:
            self._engine.add_request(request)
            self._live[request.request_id] = stream
        except RequestError as error:
            self._deliver([(stream, error)])
        except Exception:
            # A request that isn't admitted leaves nothing behind, so this is not the end of the engine.
            logger.exception("rank %d can't admit request %r", self._dp_rank, request.request_id)
            self._deliver(
                [(stream, RequestFailedError("the engine can't admit the request; its log says why"))]
            )
        # A refused request is acknowledged too: a router reserved work for it.
        self._admitted.append(request.request_id)

    def _drop(self, stream: OutputStream) -> None:
        """Abort the stream's own request, if the engine still has it, and no other with its id."""
        if self._live.get(stream.request_id) is stream:
            del self._live[stream.request_id]
            self._engine.abort(stream.request_id)

    def _deliver(self, items: list[tuple[OutputStream, StreamItem]]) -> None:
        self._loop.call_soon_threadsafe(self._streams.deliver, items)

    def _publish(self, events: list[CacheEvent]) -> None:
        if events and self._listener is not None:
            self._listener.publish(events)

    def _report_load(self) -> None:
        """Report the load every few steps and at least once a second.

        An admission is reported at once, since a router's reservation stands until then, and so is idleness.
        """
        now = time.monotonic()
        became_idle = self._reported_busy and not self._engine.has_work()
        is_due = self._steps_since_report >= STEPS_PER_LOAD_REPORT
        if not (self._admitted or became_idle or is_due or now - self._reported_at >= LOAD_HEARTBEAT_S):
            return
        self.load = self._engine.load_stat(self._dp_rank)
        self.num_cached_blocks = self._engine.num_cached_blocks
        if self._listener is not None:
            self._listener.publish_load(self.load, self._admitted)
        self._reported_busy = self._engine.has_work()
        self._admitted = []
        self._steps_since_report = 0
        self._reported_at = now


def _item(output: RequestOutput) -> StreamItem:
    if output.finish_reason == "error":
        return RequestFailedError(output.error or "the engine could not compute the request")
    return TokenChunk(
        token_ids=output.new_token_ids,
        num_prompt_tokens=output.num_prompt_tokens,
        num_cached_tokens=output.num_cached_tokens,
        finish_reason=output.finish_reason,
        index=output.index,
        logprobs=output.logprobs,
        prompt_logprobs=output.prompt_logprobs,
    )
