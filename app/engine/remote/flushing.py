"""Empties a worker's cache: `/flush_cache` of SGLang and kvbeacon, `/reset_prefix_cache` of vLLM."""

from __future__ import annotations

import secrets

from app.engine.remote.api.generation import WorkerRequest
from app.engine.remote.api.http import WorkerHttp
from app.engine.remote.api.vllm import VllmApi
from app.engine.remote.worker import WorkerDescription
from app.errors import RequestError, WorkerError
from app.generation import SamplingParams

FLUSH_S = 10.0
_NOT_SERVED = (403, 404, 405, 501)
_ALLOWED_BY = {
    "vllm": "start vLLM with VLLM_SERVER_DEV_MODE=1",
    "kvbeacon": "set its ingress.allow_flush_cache",
    "sglang": "SGLang serves it",
}


async def flush_cache(http: WorkerHttp, worker: WorkerDescription) -> bool:
    """Whether it was done: a busy worker refuses. All of the worker's ranks are emptied.

    Raises:
        WorkerError: the worker doesn't serve it, or can't be reached.
    """
    path = "/reset_prefix_cache" if worker.kind == "vllm" else "/flush_cache"
    answer = await http.ask(path, method="POST", timeout_s=FLUSH_S)
    if answer.status in _NOT_SERVED:
        raise WorkerError(f"{path} isn't served (status {answer.status}): {_ALLOWED_BY[worker.kind]}")
    if worker.kind != "vllm" or not answer.is_ok:
        return answer.is_ok
    is_done = answer.json().get("success") is True
    if is_done:
        await _make_a_step(http, worker)
    return is_done


async def _make_a_step(http: WorkerHttp, worker: WorkerDescription) -> None:
    """vLLM publishes what its cache lost with its next step, which an idle one may never make."""
    api = VllmApi(http.url, worker.dp_rank)
    params = SamplingParams(1, temperature=0.0)
    request = WorkerRequest(f"flush-{secrets.token_hex(8)}", [0], params, 1, 0, None, 0)
    try:
        async for _ in http.events(api.path, api.body(request), api.headers()):
            pass
    except RequestError as error:
        raise WorkerError(error.message) from None
