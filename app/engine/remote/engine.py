"""One rank of a worker by URL as a `RankEngine`: its requests over HTTP, its cache and load as they are seen.

    WorkerWatch ──what it is──▶ RemoteEngine ──▶ RankFollower: feed, relay, load reports
                                   │ admit ──▶ one task: POST ──▶ server-sent events ──▶ OutputStream

A worker that is down makes the rank unavailable, and not unhealthy: its replica goes on asking. Everything
but `content` runs on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from app.engine.interface import EngineDescription, EngineListener, EngineStatus, Result
from app.engine.output_streams import OutputStream
from app.engine.remote.api.generation import AnswerCheck, GenerateApi, WorkerRequest, worker_requests
from app.engine.remote.api.http import WorkerHttp
from app.engine.remote.api.native import NativeApi
from app.engine.remote.api.vllm import VllmApi
from app.engine.remote.flushing import flush_cache
from app.engine.remote.following import RankFollower
from app.engine.remote.load import OwnRequest, RemoteLoad
from app.engine.remote.progress import WorkerProgress
from app.engine.remote.watch import WorkerWatch
from app.engine.remote.worker import RemoteRank, WorkerDescription
from app.errors import EngineFailedError, QueueFullError, RequestError, WireError, WorkerError
from app.events.schema import CacheEvent, LoadStat
from app.events.snapshot import CachedBlock
from app.generation import GenerateRequest, SamplingParams, TokenChunk

logger = logging.getLogger(__name__)

LOAD_HEARTBEAT_S = 1.0
END_S = 2.0
"""From the last token to the end of its answer; then the connection is closed instead of used again."""
REMOTE = "remote"
"""Stands for what a worker doesn't say of itself: its device and its number format."""


class RemoteEngine:
    """See `RankEngine`."""

    def __init__(self, rank: RemoteRank) -> None:
        self._rank = rank
        self._http = WorkerHttp(rank.url, rank.api_key)
        self._load = RemoteLoad(rank.dp_rank)
        self._progress = WorkerProgress(self._load, rank.stall_timeout_s)
        self._watch = WorkerWatch(
            self._http, rank.worker_rank, rank.expected, on_worker=self._take_worker, on_load=self._take_load
        )
        self._follower = RankFollower(
            f"rank {rank.worker_rank} of {rank.url}",
            rank.block_size,
            self._load,
            publish=self._publish,
            on_load=self._take_report,
            flush=self._flush_at_adoption if rank.may_flush else None,
        )
        self._listener: EngineListener | None = None
        self._api: GenerateApi | None = None
        self._flush_fault: str | None = None
        self._live: dict[OutputStream, OwnRequest] = {}
        self._tasks: dict[OutputStream, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[Any]] = set()
        self._following = asyncio.Lock()
        self._stopped = False
        self._closed = asyncio.Event()

    @property
    def description(self) -> EngineDescription:
        """See `RankEngine`; what only the worker knows is there once it was reached."""
        rank, worker = self._rank, self._watch.worker
        max_model_len, num_blocks = rank.expected.max_model_len, 0
        if worker is not None:
            max_model_len = rank.expected.context(worker)
            num_blocks = worker.num_tokens // rank.block_size
        in_cache = num_blocks * rank.block_size or max_model_len
        return EngineDescription(
            model_dir=rank.model_dir,
            max_model_len=max_model_len,
            max_prompt_tokens=min(max_model_len - 1, in_cache),
            num_blocks=num_blocks,
            device=REMOTE,
            dtype=REMOTE,
            kernels=worker.label if worker is not None else REMOTE,
        )

    @property
    def status(self) -> EngineStatus:
        """See `RankEngine`."""
        partial_cache = self._follower.partial
        if partial_cache is None and self._watch.worker is not None:
            partial_cache = self._watch.worker.partial_cache
        if partial_cache is not None and self._flush_fault is not None:
            partial_cache = f"{partial_cache}; it can't be flushed: {self._flush_fault}"
        feed = self._follower.feed_status
        unavailable = self._watch.unavailable
        if unavailable is None and (fault := self._progress.fault) is not None:
            unavailable = f"{self._rank.url}: {fault}"
        return EngineStatus(unavailable, partial_cache, None if feed is None else feed.as_json())

    @property
    def load(self) -> LoadStat:
        """See `RankEngine`."""
        return self._load.stat()

    @property
    def num_cached_blocks(self) -> int:
        """See `RankEngine`."""
        return self._follower.num_cached_blocks

    def renumber(self, dp_rank: int) -> None:
        """See `RankEngine`. The worker stays the same one."""
        self._rank = replace(self._rank, dp_rank=dp_rank)
        self._load.dp_rank = dp_rank

    def start(self, listener: EngineListener | None) -> None:
        """See `RankEngine`."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._spawn(self._watch.run(), "watch")
        self._spawn(self._beat(), "load")

    def stop(self) -> None:
        """See `RankEngine`. May be called from any thread, also when the event loop is closed already."""
        if self._stopped:
            return
        self._stopped = True
        with suppress(RuntimeError):  # the loop is closed: everything on it has ended
            self._loop.call_soon_threadsafe(self._shut_down)

    async def wait_stopped(self) -> None:
        """Return once everything that `stop` ends has ended: tasks, sockets, connections."""
        await self._closed.wait()

    def check_health(self) -> None:
        """See `RankEngine`. That the worker is down is no fault of this replica's."""
        if self._stopped:
            raise EngineFailedError(f"rank {self._rank.dp_rank} has stopped")

    async def prepare(self, params: SamplingParams) -> None:
        """See `RankEngine`: grammars compile at the worker."""

    def admit(self, request: GenerateRequest) -> OutputStream:
        """See `RankEngine`."""
        self.check_health()
        earlier = request.earlier_outputs
        num_samples = request.n if earlier is None else max(1, len(earlier))
        num_tokens = len(request.prompt_token_ids)
        cached = self._follower.num_cached_tokens(request.prompt_token_ids, request.cache_salt)
        own = self._load.add(request.request_id, num_tokens, num_tokens - cached, num_samples)
        stream = OutputStream(request.request_id, num_samples, self._abort)
        self._live[stream] = own
        self._publish_load([request.request_id])
        if (refusal := self._refusal()) is not None:
            stream.put(refusal)
            self._end(stream)
            return stream
        self._progress.record_sent()
        task = asyncio.create_task(self._serve(request, stream, own, cached))
        self._tasks[stream] = task
        task.add_done_callback(lambda _: self._tasks.pop(stream, None))
        return stream

    def content(self, read: Callable[[Sequence[CachedBlock]], Result]) -> Future[Result]:
        """See `RankEngine`."""
        self.check_health()
        return self._follower.content(read)

    async def reset_cache(self) -> bool:
        """See `RankEngine`: the worker is asked for it, for all of its ranks."""
        self.check_health()
        worker = self._watch.worker
        if worker is None or self._watch.unavailable is not None:
            raise EngineFailedError(self._unavailable)
        try:
            return await flush_cache(self._http, worker)
        except WorkerError as error:
            raise EngineFailedError(f"{self._rank.url}: {error}") from None

    # ---- what the worker says

    def _take_worker(self, worker: WorkerDescription | None) -> None:
        if worker is None:
            self._api = None
            self._load.forget_reports()
            self._progress.forget()
            self._fail_waiting()
        else:
            self._load.set_capacity(worker.num_tokens)
            self._api = _api(worker, self._http.url)
            self._spawn(self._follow(worker), "follow")
        self._publish_load()

    async def _follow(self, worker: WorkerDescription) -> None:
        async with self._following:
            if not self._stopped:
                await self._follower.follow(worker, self._rank.worker_rank)

    def _take_load(self, stat: LoadStat) -> None:
        self._load.report(stat)
        self._progress.record_polled(stat)
        self._publish_load()

    def _take_report(self) -> None:
        self._progress.record_report()
        self._publish_load()

    async def _flush_at_adoption(self) -> None:
        worker = self._watch.worker
        if worker is None:
            return
        try:
            await flush_cache(self._http, worker)
            self._flush_fault = None
        except WorkerError as error:
            if str(error) != self._flush_fault:
                logger.warning("%s: not all of its cache is known: %s", self._rank.url, error)
            self._flush_fault = str(error)

    def _publish(self, events: Sequence[CacheEvent]) -> None:
        if self._listener is not None:
            self._listener.publish(events)

    def _publish_load(self, acknowledged: Sequence[str] = ()) -> None:
        if self._listener is not None:
            self._listener.publish_load(self._load.stat(), acknowledged)

    async def _beat(self) -> None:
        while True:
            self._publish_load()
            await asyncio.sleep(LOAD_HEARTBEAT_S)

    # ---- requests

    def _refusal(self) -> RequestError | None:
        """Why the request that was counted last isn't sent."""
        count, allowed = self._load.num_requests, self._rank.max_requests
        if count > allowed:
            return QueueFullError(f"{count - 1} requests are at the worker; at most {allowed} may be")
        return None

    @property
    def _unavailable(self) -> str:
        return self._watch.unavailable or f"{self._rank.url}: it isn't known yet"

    async def _serve(
        self, request: GenerateRequest, stream: OutputStream, own: OwnRequest, num_cached: int
    ) -> None:
        """Send the request and hand out what comes back; an error is its last item."""
        try:
            await self._send(request, num_cached, partial(self._take_chunk, stream, own))
        except RequestError as error:
            stream.put(error)
        except WireError as error:
            stream.put(EngineFailedError(f"{self._rank.url}: {error}"))
        except Exception as error:
            logger.exception("request %s failed", request.request_id)
            stream.put(EngineFailedError(f"{self._rank.url}: {error!r}"))
        finally:
            self._end(stream)

    async def _send(
        self, request: GenerateRequest, num_cached: int, take: Callable[[TokenChunk], object]
    ) -> None:
        """All that the request asks of the worker."""
        if (api := self._api) is None:
            raise EngineFailedError(self._unavailable)
        if request.cache_salt is not None:
            self._follower.add_salt(request.cache_salt)
        asked = worker_requests(request, self.description.max_model_len, num_cached)
        if request.earlier_outputs is None:
            await self._exchange(api, asked[0], take)
            return
        num_tokens = len(request.prompt_token_ids)
        await _all(
            self._exchange(api, each, partial(_resumed, take, index, num_tokens))
            for index, each in asked.items()
        )

    async def _exchange(
        self, api: GenerateApi, asked: WorkerRequest, take: Callable[[TokenChunk], object]
    ) -> None:
        """One POST, up to the end of its answer, so that its connection can be used again."""
        answer, check = api.answer(asked), AnswerCheck(asked)
        try:
            async with (
                asyncio.timeout(None) as limit,
                aclosing(self._http.events(api.path, api.body(asked), api.headers())) as events,
            ):
                async for data in events:
                    for chunk in answer.take(data):
                        take(check.checked(chunk))
                    if check.is_over and limit.when() is None:
                        limit.reschedule(self._loop.time() + END_S)
        except (TimeoutError, EngineFailedError):
            if not check.is_over:
                raise
        if not check.is_over:
            raise EngineFailedError(f"{self._rank.url}: the answer ended too early")

    def _take_chunk(self, stream: OutputStream, own: OwnRequest, chunk: TokenChunk) -> None:
        self._progress.record_step()
        if not own.has_token:
            self._load.first_token(own, chunk.num_cached_tokens)
            self._publish_load()
        stream.put(chunk)
        if stream.is_over:
            self._end(stream)

    def _end(self, stream: OutputStream) -> None:
        """The request counts no more; a second call does nothing."""
        own = self._live.pop(stream, None)
        if own is not None:
            self._load.remove(own)
            self._progress.record_ended()
            self._publish_load()

    def _abort(self, stream: OutputStream) -> None:
        """Closing the connection ends the request at the worker."""
        self._end(stream)
        task = self._tasks.pop(stream, None)
        if task is not None:
            task.cancel()

    def _fail_waiting(self) -> None:
        """Requests without a token can be served elsewhere; the others may still come to their end."""
        for stream, own in list(self._live.items()):
            if not own.has_token:
                stream.put(EngineFailedError(self._unavailable))
                self._abort(stream)

    # ---- tasks

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=f"{name}-of-rank-{self._rank.dp_rank}")
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    def _shut_down(self) -> None:
        for task in list(self._others):
            task.cancel()
        for stream in list(self._live):
            stream.put(EngineFailedError(f"rank {self._rank.dp_rank} has stopped"))
            self._abort(stream)
        self._spawn(self._close(), "close")

    async def _close(self) -> None:
        async with self._following:
            await self._follower.close()
        await self._http.close()
        self._closed.set()


def _api(worker: WorkerDescription, url: str) -> GenerateApi:
    if worker.kind == "vllm":
        return VllmApi(url, worker.dp_rank)
    return NativeApi(url, worker.dp_rank, higher_first=worker.higher_first, ignored=worker.ignored)


def _resumed(
    take: Callable[[TokenChunk], object], index: int, num_prompt_tokens: int, chunk: TokenChunk
) -> None:
    """A sample that goes on is the only one of its request there, with its earlier output as prompt."""
    cached = min(chunk.num_cached_tokens, num_prompt_tokens)
    take(replace(chunk, index=index, num_prompt_tokens=num_prompt_tokens, num_cached_tokens=cached))


async def _all(works: Any) -> None:
    """Run them all; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except* Exception as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
