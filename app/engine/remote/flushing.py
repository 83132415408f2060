"""Empties a worker's cache: `/flush_cache` of SGLang and kvbeacon, `/reset_prefix_cache` of vLLM."""

from __future__ import annotations

from app.engine.remote.api.http import WorkerHttp
from app.engine.remote.worker import WorkerKind
from app.errors import WorkerError

FLUSH_S = 10.0
_NOT_SERVED = (403, 404, 405, 501)


async def flush_cache(http: WorkerHttp, kind: WorkerKind) -> bool:
    """Whether it was done: a busy worker refuses. All of the worker's ranks are emptied.

    Raises:
        WorkerError: the worker doesn't serve it, or can't be reached.
    """
    path = "/reset_prefix_cache" if kind == "vllm" else "/flush_cache"
    answer = await http.ask(path, method="POST", timeout_s=FLUSH_S)
    if answer.status in _NOT_SERVED:
        allow = {
            "vllm": "start vLLM with VLLM_SERVER_DEV_MODE=1",
            "kvbeacon": "its config must allow it",
            "sglang": "SGLang serves it",
        }
        raise WorkerError(f"{path} isn't served (status {answer.status}): {allow[kind]}")
    if kind == "vllm" and answer.is_ok:
        return answer.json().get("success") is True
    return answer.is_ok
