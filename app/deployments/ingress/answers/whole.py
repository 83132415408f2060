"""An answer in one piece over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from starlette.responses import JSONResponse

from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.deployments.ingress.misses.cache_report import CacheReport


async def json_answer(
    answer: Awaitable[dict[str, Any]], stream: RankStream, headers: Mapping[str, str], report: CacheReport
) -> JSONResponse:
    """The answer, once it is whole.

    Args:
        answer: is computed of `stream`.
        stream: the request's.
        headers: what else the answer has.
        report: what came of the cache while the answer was computed is in its header too.
    """
    content = await answer
    return JSONResponse(content, headers={"x-dp-rank": str(stream.rank), **headers, **report.header()})
