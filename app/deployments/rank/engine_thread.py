"""The thread that owns a rank's engine, and the asyncio side that talks to it.

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
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from app.deployments.messages import RankMessage, Refusal
from app.engine.torch.engine import Engine
from app.engine.torch.outputs import RequestOutput
from app.errors import EngineFailedError, KvbeaconError, RequestError, RequestFailedError
from app.events.publishing.publisher import EventPublisher
from app.events.schema import CacheEvent
from app.events.snapshot import CacheContent, CacheSnapshot
from app.generation import GenerateRequest, TokenChunk

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

LOAD_HEARTBEAT_S = 1.0
STEPS_PER_LOAD_REPORT = 4


class EngineThread:
    """Runs one engine on a thread of its own and streams its output into asyncio.

    Args:
        engine: owned by the thread from `start` on.
        publisher: told of every cache event in the order of cache changes; None publishes nothing.
        dp_rank: the rank's number, for load reports.
    """

    def __init__(self, engine: Engine, publisher: EventPublisher | None, dp_rank: int) -> None:
        self._engine = engine
        self._publisher = publisher
        self._dp_rank = dp_rank
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[str, asyncio.Queue[RankMessage]] = {}
        self._calls: set[Future[Any]] = set()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"engine-{dp_rank}", daemon=True)
        self._stopping = False
        self._failed = False
        self._admitted: list[str] = []
        self._steps_since_report = 0
        self._reported_at = 0.0
        self._reported_busy = False
        self.load = engine.load_stat(dp_rank)
        self.num_cached_blocks = 0

    # Called on the event loop.

    def start(self) -> None:
        """Starts the thread."""
        if self._publisher is not None:
            self._publisher.serve_snapshots(partial(self.take_content, self._publisher))
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its current step; safe to call twice."""
        self._stopping = True
        self._inbox.put(lambda: None)
        self._thread.join()

    def check_health(self) -> None:
        """Raises `EngineFailedError` once the thread has ended, or is about to."""
        if self._stopping or self._failed or not self._thread.is_alive():
            raise self._stopped_error()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[RankMessage]:
        """The output of the request's samples, a message for each that a step adds to; a refusal ends it.

        Leaving the iteration early aborts the request and frees its blocks. A grammar compiles before the
        engine's thread hears of the request, so that no step waits for it.
        """
        if request.params.structured_output is not None:
            try:
                await asyncio.to_thread(self._engine.prepare, request.params)
            except RequestError as error:
                yield Refusal(error)
                return
        if self._stopping or self._failed:
            yield Refusal(self._stopped_error())
            return
        stream: asyncio.Queue[RankMessage] = asyncio.Queue()
        self._streams[request.request_id] = stream
        self._inbox.put(lambda: self._admit(request))
        num_unfinished, finished = request.n, False
        try:
            while not finished:
                message = await stream.get()
                num_unfinished -= _ends_sample(message)
                finished = num_unfinished == 0 or not isinstance(message, TokenChunk)
                yield message
        finally:
            del self._streams[request.request_id]
            if not finished:
                self._inbox.put(lambda: self._abort(request.request_id))

    async def snapshot(self) -> CacheSnapshot:
        """The whole cache content at a known sequence number, taken between two steps."""
        if self._publisher is None:
            raise KvbeaconError(f"rank {self._dp_rank} publishes no events, so it has no snapshot")
        content = await asyncio.wrap_future(self.take_content(self._publisher))
        return await asyncio.to_thread(self._publisher.snapshot, content)

    # Called on any thread.

    def take_content(self, publisher: EventPublisher) -> Future[CacheContent]:
        """What the cache holds between two steps, as of a known sequence number of `publisher`."""

        def take(engine: Engine) -> CacheContent:
            # What changed since the last step has no sequence number yet, but is in the cache's content.
            self._publish(engine.drain_events())
            return publisher.content(engine.cached_blocks())

        return self.submit(take)

    def submit(self, function: Callable[[Engine], Result]) -> Future[Result]:
        """What `function` will return when the thread runs it between two steps."""
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
        if self._failed:  # perhaps since it was looked at above, and with nobody left to run this
            self._fail(future)
        return future

    def _stopped_error(self) -> EngineFailedError:
        return EngineFailedError(f"the engine of rank {self._dp_rank} has stopped; its log says why")

    def _deliver(self, messages: list[tuple[str, RankMessage]]) -> None:
        for request_id, message in messages:
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.put_nowait(message)

    def _fail_waiters(self) -> None:
        for stream in self._streams.values():
            stream.put_nowait(Refusal(self._stopped_error()))
        for call in list(self._calls):
            self._fail(call)

    def _fail(self, call: Future[Any]) -> None:
        with suppress(InvalidStateError):  # answered or cancelled already
            call.set_exception(self._stopped_error())

    # Called on the engine's thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._work_inbox()
                if self._admitted:  # before a step, which may be long
                    self._report_load()
                if self._engine.has_work():
                    self._step()
                self._report_load()
        except BaseException:
            logger.exception("the engine of rank %d stopped", self._dp_rank)
            self._failed = True
        finally:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._fail_waiters)

    def _work_inbox(self) -> None:
        """Runs everything that waits; blocks for more only when the engine has nothing to do."""
        try:
            run = self._inbox.get(block=not self._engine.has_work(), timeout=LOAD_HEARTBEAT_S)
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
        messages = [(output.request_id, _message(output)) for output in result.outputs]
        for output in result.outputs:
            if output.finish_reason == "error":
                self._engine.abort(output.request_id)  # the refusal ends the stream of its other samples too
        if messages:
            self._loop.call_soon_threadsafe(self._deliver, messages)

    def _admit(self, request: GenerateRequest) -> None:
        try:
            self._engine.add_request(
                request.request_id,
                request.prompt_token_ids,
                request.params,
                request.cache_salt,
                n=request.n,
                priority=request.priority,
            )
        except RequestError as error:
            refused: list[tuple[str, RankMessage]] = [(request.request_id, Refusal(error))]
            self._loop.call_soon_threadsafe(self._deliver, refused)
        self._admitted.append(request.request_id)

    def _abort(self, request_id: str) -> None:
        self._engine.abort(request_id)

    def _publish(self, events: list[CacheEvent]) -> None:
        if events and self._publisher is not None:
            self._publisher.publish(events)

    def _report_load(self) -> None:
        """Tells routers the load every few steps and at least once a second.

        An admission is told at once, because a router's reservation stands until then, and so is idleness.
        """
        now = time.monotonic()
        became_idle = self._reported_busy and not self._engine.has_work()
        is_due = self._steps_since_report >= STEPS_PER_LOAD_REPORT
        if not (self._admitted or became_idle or is_due or now - self._reported_at >= LOAD_HEARTBEAT_S):
            return
        self.load = self._engine.load_stat(self._dp_rank)
        self.num_cached_blocks = self._engine.num_cached_blocks
        if self._publisher is not None:
            self._publisher.publish_load(self.load, self._admitted)
        self._reported_busy = self._engine.has_work()
        self._admitted = []
        self._steps_since_report = 0
        self._reported_at = now


def _message(output: RequestOutput) -> RankMessage:
    if output.finish_reason == "error":
        return Refusal(RequestFailedError(output.error or "the engine could not compute the request"))
    return TokenChunk(
        token_ids=output.new_token_ids,
        num_prompt_tokens=output.num_prompt_tokens,
        num_cached_tokens=output.num_cached_tokens,
        finish_reason=output.finish_reason,
        index=output.index,
        logprobs=output.logprobs,
    )


def _ends_sample(message: RankMessage) -> bool:
    return isinstance(message, TokenChunk) and message.finish_reason is not None
