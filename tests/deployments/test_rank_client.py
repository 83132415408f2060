"""Calls to ranks: what they return, and Ray's errors in our own words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pickle import UnpicklingError
from typing import Any

import pytest
from grpc import RpcError
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from app.deployments.messages import NotAddressed
from app.deployments.rank_client import RankClient, RankMessages
from app.errors import RankCallError, RankFailedError, RankGoneError, RankUnreachableError
from app.events.snapshot import CacheSnapshot
from app.generation import TokenChunk
from tests.support.fake_handle import BROKEN, BUG, DEAD, FAILED, GONE, FakeHandle

CHUNK = TokenChunk([7], 9, 4)
SNAPSHOT = CacheSnapshot("epoch", 5, [])
FAILURES: list[tuple[RayError, type[RankCallError]]] = [
    (DEAD, RankGoneError),
    (GONE, RankUnreachableError),
    (FAILED, RankFailedError),
    (BROKEN, RankCallError),
]


def client(answers: dict[str, list[Any]] | None) -> tuple[RankClient, FakeHandle]:
    fake: Any = FakeHandle(answers)
    return RankClient(fake), fake


def messages_of(*script: TokenChunk | BaseException) -> RankMessages:
    async def response() -> AsyncIterator[TokenChunk]:
        for step in script:
            if isinstance(step, BaseException):
                raise step
            yield step

    fake: Any = response()
    return RankMessages(fake)


async def test_messages_come_as_the_rank_sends_them_and_end_with_it() -> None:
    assert [message async for message in messages_of(CHUNK, CHUNK)] == [CHUNK, CHUNK]


@pytest.mark.parametrize("failure", [BUG, TimeoutError("a library's"), UnpicklingError("cut off")])
async def test_what_a_ranks_code_raises_in_a_stream_comes_as_it_is_and_becomes_the_ranks_failure(
    failure: Exception,
) -> None:
    messages = messages_of(CHUNK, failure)
    assert await anext(messages) == CHUNK
    with pytest.raises(RankFailedError) as caught:
        await anext(messages)
    assert str(caught.value) == f"{type(failure).__name__}: {failure}"
    assert caught.value.__cause__ is failure


@pytest.mark.parametrize(
    "failure",
    [RpcError("the connection broke"), BackPressureError(num_queued_requests=1, max_queued_requests=0)],
)
async def test_what_else_breaks_in_the_transport_is_not_the_ranks_failure(failure: Exception) -> None:
    with pytest.raises(RankCallError) as caught:
        await anext(messages_of(failure))
    assert type(caught.value) is RankCallError
    assert caught.value.__cause__ is failure


async def test_a_cancelled_caller_is_cancelled() -> None:
    async def silent() -> AsyncIterator[TokenChunk]:
        await asyncio.Event().wait()
        yield CHUNK

    fake: Any = silent()
    caller = asyncio.create_task(anext(RankMessages(fake)))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_a_call_that_its_replica_cancels_finds_the_replica_gone() -> None:
    messages = messages_of(CHUNK, asyncio.CancelledError())
    assert await anext(messages) == CHUNK
    with pytest.raises(RankGoneError, match="the replica cancelled the call"):
        await anext(messages)


@pytest.mark.parametrize(("failure", "error"), FAILURES)
async def test_a_call_that_breaks_off_is_an_error_of_our_own(
    failure: RayError, error: type[RankCallError]
) -> None:
    messages = messages_of(CHUNK, failure)
    assert await anext(messages) == CHUNK
    with pytest.raises(RankCallError) as caught:
        await anext(messages)
    assert type(caught.value) is error
    assert str(caught.value) == str(failure)
    assert caught.value.__cause__ is failure


async def test_a_snapshot_is_that_of_the_replica() -> None:
    ranks, handle = client({"snapshot": [SNAPSHOT]})
    assert await ranks.snapshot("replica-1") == SNAPSHOT
    assert handle.calls == [("snapshot", (), {"replica_id": "replica-1"})]


async def test_a_replica_that_is_gone_has_no_snapshot_and_no_description() -> None:
    ranks, _ = client({"snapshot": [None], "describe": [NotAddressed()]})
    with pytest.raises(RankGoneError, match=r"^replica replica-1 is gone$"):
        await ranks.snapshot("replica-1")
    with pytest.raises(RankGoneError, match=r"^replica replica-1 is gone$"):
        await ranks.describe(replica_id="replica-1", timeout_s=1.0)


@pytest.mark.parametrize(("failure", "error"), FAILURES)
async def test_a_snapshot_that_fails_is_an_error_of_our_own(
    failure: RayError, error: type[RankCallError]
) -> None:
    ranks, _ = client({"snapshot": [failure]})
    with pytest.raises(RankCallError) as caught:
        await ranks.snapshot("replica-1")
    assert type(caught.value) is error
    assert str(caught.value) == str(failure)


async def test_without_any_rank_a_call_finds_its_replica_gone() -> None:
    ranks, _ = client(None)
    with pytest.raises(RankGoneError) as caught:
        await ranks.snapshot("replica-1")
    assert isinstance(caught.value.__cause__, DeploymentUnavailableError)
