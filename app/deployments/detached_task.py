"""Work that is done apart from the request that is being served just then."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

Result = TypeVar("Result")


def detached_task(work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """A task for `work` that knows nothing of the request on whose behalf this is called.

    Needed wherever a request makes several calls to chosen replicas at once. Ray Serve gives all calls of one
    request the same internal id, and its request router (2.60) finds a waiting call by that id: of two that
    wait at the same time one is never sent, and later calls stall.
    """
    return asyncio.create_task(work, context=Context())
