"""Asks a worker again and again what it is, so that one that goes, comes back or changes is noticed.

GET /server_info ── has kv_events ──▶ SGLang or kvbeacon
      └── 404, or something else ──▶ GET /kv_event_sources ──▶ vLLM
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from app.engine.remote.api.http import WorkerHttp
from app.engine.remote.api.vllm import VllmApi
from app.engine.remote.native_info import read_loads, read_server_info
from app.engine.remote.vllm_info import Json, Metrics, Models, describe, engine_of, read_load, read_models
from app.engine.remote.worker import Expected, WorkerDescription
from app.errors import WorkerError, WorkerSlowError
from app.events.schema import LoadStat

logger = logging.getLogger(__name__)

POLL_S = 1.0
MAX_POLL_S = 4.0
"""Pauses double up to this while a worker is down."""
MAX_SLOW_POLLS = 3
"""Polls in a row without an answer in time, until the worker counts as down."""

_NO_SUCH_ROUTE = (404, 405, 501)


class WorkerWatch:
    """Polls one worker for one of its ranks.

    Args:
        http: of the worker.
        dp_rank: the worker's rank.
        expected: what the settings say of it.
        on_worker: called with a description that differs from the last one, once it can be served from, and
            with None when it can't any more.
        on_load: called with each load that the worker tells when it is polled.

    Attributes:
        worker: the last description, also of a worker that is down now; None: there was none yet.
        unavailable: why the rank can't be served from now; None: it can.
    """

    def __init__(
        self,
        http: WorkerHttp,
        dp_rank: int,
        expected: Expected,
        *,
        on_worker: Callable[[WorkerDescription | None], object],
        on_load: Callable[[LoadStat], object],
    ) -> None:
        self.worker: WorkerDescription | None = None
        self.unavailable: str | None = f"{http.url}: not asked yet"
        self._http = http
        self._dp_rank = dp_rank
        self._expected = expected
        self._on_worker = on_worker
        self._on_load = on_load
        self._served: WorkerDescription | None = None
        """What `on_worker` was called with last."""
        self._is_vllm = False
        self._described_from: tuple[Json, Models] | None = None
        """vLLM's answers that `worker` was made from."""
        self._num_slow = 0

    async def run(self) -> None:
        """Poll until cancelled."""
        pause_s = POLL_S
        while True:
            await self.poll()
            pause_s = POLL_S if self.unavailable is None else min(2 * pause_s, MAX_POLL_S)
            await asyncio.sleep(pause_s)

    async def poll(self) -> None:
        """Ask once. Raises nothing: what goes wrong is in `unavailable`."""
        try:
            worker = await self._look()
        except WorkerSlowError as error:
            self._num_slow += 1
            if self._num_slow >= MAX_SLOW_POLLS:
                self._set_unavailable(str(error))
        except WorkerError as error:
            self._set_unavailable(str(error))
        except Exception as error:
            logger.exception("%s could not be polled", self._http.url)
            self._set_unavailable(f"its answer can't be used: {error!r}")
        else:
            self._num_slow = 0
            self._take(worker)

    def _take(self, worker: WorkerDescription) -> None:
        if worker != self.worker:
            logger.info("%s: rank %d is %s", self._http.url, self._dp_rank, worker)
        self.worker = worker
        fault = self._expected.fault(worker)
        if fault is not None:
            self._set_unavailable(fault)
            return
        if self.unavailable is not None:
            logger.info("%s: rank %d is available", self._http.url, self._dp_rank)
        self.unavailable = None
        if worker != self._served:
            self._served = worker
            self._on_worker(worker)

    def _set_unavailable(self, reason: str) -> None:
        reason = f"{self._http.url}: {reason}"
        if reason != self.unavailable:
            logger.warning("rank %d of its worker is unavailable: %s", self._dp_rank, reason)
        self.unavailable = reason
        self._described_from = None
        if self._served is not None:
            self._served = None
            self._on_worker(None)

    async def _look(self) -> WorkerDescription:
        if not self._is_vllm:
            answer = await self._http.ask("/server_info")
            if answer.is_ok and "kv_events" in (info := answer.json()):
                worker = read_server_info(info, self._http.host, self._dp_rank)
                await self._ask_loads(worker)
                return worker
            if not answer.is_ok and answer.status not in _NO_SUCH_ROUTE:
                raise WorkerError(f"/server_info: status {answer.status}")
        try:
            return await self._look_at_vllm()
        except WorkerError:
            self._is_vllm = False  # perhaps another kind is started there now
            raise

    async def _ask_loads(self, worker: WorkerDescription) -> None:
        """A rank without load reports is asked."""
        if worker.publisher is not None and worker.publisher.load is not None:
            return
        answer = await self._http.ask("/v1/loads")
        try:
            load = read_loads(answer.json(), self._dp_rank) if answer.is_ok else None
        except WorkerError:
            return  # it has something else there: our own requests are all that is known
        if load is not None:
            self._on_load(load)

    async def _look_at_vllm(self) -> WorkerDescription:
        answer = await self._http.ask("/kv_event_sources")
        if answer.status in _NO_SUCH_ROUTE:
            raise WorkerError(
                "it has neither a /server_info with kv_events (SGLang, kvbeacon) nor a /kv_event_sources "
                "(vLLM from 0.32 on)"
            )
        sources = self._ok(answer.status, answer.json())
        models = read_models(await self._ask_json("/v1/models"))
        self._is_vllm = True
        engine = engine_of(sources, self._dp_rank)
        shown = await self._http.ask("/metrics")
        metrics = Metrics(shown.body.decode(errors="replace") if shown.is_ok else "", engine)
        worker = self.worker
        if worker is None or self._described_from != (sources, models):
            version = str((await self._ask_json("/version")).get("version") or "")
            has_api = (await self._http.ask(VllmApi.path)).status != 404  # a GET: 405 where a POST is served
            worker = describe(sources, models, version, metrics, engine, self._http.host, has_api)
            self._described_from = (sources, models)
        load = read_load(metrics, worker, self._dp_rank)
        if load is not None:
            self._on_load(load)
        return worker

    async def _ask_json(self, path: str) -> Json:
        answer = await self._http.ask(path)
        return self._ok(answer.status, answer.json() if answer.is_ok else {}, path)

    def _ok(self, status: int, content: Json, path: str = "/kv_event_sources") -> Json:
        if not 200 <= status < 300:
            raise WorkerError(f"{path}: status {status}")
        return content
