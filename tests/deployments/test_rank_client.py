"""Calls to ranks: what they return, Ray's errors in our own words, and the directory of ranks."""

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
from app.deployments.rank_directory import RankDirectory
from app.errors import RankCallError, RankFailedError, RankGoneError
from app.events.snapshot import CacheSnapshot
from app.generation import TokenChunk
from tests.support.fake_handle import BROKEN, BUG, DEAD, FAILED, GONE, FakeHandle
from tests.support.rank_info import rank_info

CHUNK = TokenChunk([7], 9, 4)
SNAPSHOT = CacheSnapshot("epoch", 5, [])
FAILURES: list[tuple[RayError, type[RankCallError]]] = [
    (DEAD, RankGoneError),
    (GONE, RankGoneError),
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


async def test_the_directory_lists_the_ranks_that_answer_by_number() -> None:
    ranks, handle = client({"describe": [rank_info(2), DEAD, rank_info(0)]})
    directory = RankDirectory(ranks, timeout_s=1.0)
    assert await directory.poll() == [rank_info(0), rank_info(2)]
    assert handle.calls == [("describe", (), {})]


async def test_while_no_rank_has_started_the_directory_is_empty() -> None:
    ranks, _ = client(None)
    assert await RankDirectory(ranks, timeout_s=1.0).poll() == []


class HangingRanks(FakeHandle):
    """Rank 1 hangs once `is_hanging`, so that no broadcast ends in time; the others answer by name."""

    def __init__(self) -> None:
        super().__init__({})
        self.is_hanging = False

    def called(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        self.calls.append((name, args, kwargs))
        one = TimeoutError() if self.is_hanging else rank_info(1)
        by_replica = {"replica-0": rank_info(0), "replica-1": one, "replica-2": DEAD}
        return [by_replica[kwargs["replica_id"]]] if kwargs else list(by_replica.values())


async def test_a_rank_that_hangs_hides_no_other_rank() -> None:
    fake: Any = HangingRanks()
    directory = RankDirectory(RankClient(fake), timeout_s=1.0)
    assert await directory.poll() == [rank_info(0), rank_info(1)]
    fake.is_hanging = True
    assert await directory.poll() == [rank_info(0)]
    called = {keywords.get("replica_id") for _, _, keywords in fake.calls[1:]}
    assert called == {None, "replica-0", "replica-1"}
