"""Work apart from the request being served."""

from __future__ import annotations

from contextvars import ContextVar

import pytest

from app.deployments.detached_task import detached_task

request_id: ContextVar[str] = ContextVar("request_id", default="none")


async def test_work_apart_knows_no_request_and_its_result_and_errors_come_back() -> None:
    async def told() -> str:
        return request_id.get()

    async def fail() -> None:
        raise ValueError("broke")

    token = request_id.set("served")
    try:
        assert (await told(), await detached_task(told())) == ("served", "none")
        with pytest.raises(ValueError, match="broke"):
            await detached_task(fail())
    finally:
        request_id.reset(token)
