"""Which ranks there are: those that answer, and why others don't. One that hangs delays no other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from app.deployments import rank_directory
from app.deployments.messages import NotAddressed
from app.deployments.rank_client import RankClient
from app.deployments.rank_directory import RankDirectory
from app.routing.tracking.description import Absence
from tests.support.deadlines import until
from tests.support.fake_handle import DEAD, FAILED, GONE, NO_REPLICA, FakeHandle
from tests.support.rank_info import rank_info

TIMEOUT_S = 0.2
GONE_FROM_RAY = Absence("gone", "Ray no longer has it: it is being stopped, or has died")


class Replicas(FakeHandle):
    """Replicas that answer by name, all together, or as another than some, as `ReplicaAddressing` has it.

    Attributes:
        answers: what each describes itself as; a future hangs.
    """

    def __init__(self, *ranks: int) -> None:
        super().__init__({})
        self.answers: dict[str, Any] = {f"replica-{rank}": rank_info(rank) for rank in ranks}

    def called(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        self.calls.append((name, args, kwargs))
        if not self.answers and not kwargs:
            raise NO_REPLICA
        if not self.answers:  # Ray keeps the call until there is one
            return [asyncio.get_running_loop().create_future()]
        if "replica_id" in kwargs:
            return [self.answers.get(kwargs["replica_id"], NotAddressed())]
        if "other_than" in kwargs:
            others = [each for name, each in self.answers.items() if name not in kwargs["other_than"]]
            return [*others, NotAddressed()]
        return list(self.answers.values())

    def hang(self, rank: int) -> asyncio.Future[Any]:
        """Rank `rank` hangs until the future has a result."""
        future = self.answers[f"replica-{rank}"] = asyncio.get_running_loop().create_future()
        return future


def directory(replicas: Replicas) -> RankDirectory:
    fake: Any = replicas
    return RankDirectory(RankClient(fake), timeout_s=TIMEOUT_S)


async def test_lists_the_ranks_that_answer_by_number() -> None:
    replicas = Replicas(2, 0)
    assert await directory(replicas).poll() == [rank_info(0), rank_info(2)]
    assert replicas.calls == [("describe", (), {})]


async def test_while_no_rank_has_started_it_is_empty() -> None:
    assert await directory(Replicas()).poll() == []


async def test_a_replica_that_ray_no_longer_has_is_gone_at_once() -> None:
    replicas = Replicas(0, 1)
    ranks = directory(replicas)
    await ranks.look()
    del replicas.answers["replica-1"]
    assert await ranks.look() == ([rank_info(0)], {"replica-1": GONE_FROM_RAY})
    assert await ranks.look() == ([rank_info(0)], {}), "it is not asked again"
    replicas.answers.clear()
    replicas.calls.clear()
    assert await ranks.look() == ([], {"replica-0": GONE_FROM_RAY})
    assert await ranks.look({"replica-0"}) == ([], {"replica-0": GONE_FROM_RAY})
    assert replicas.calls == [("describe", (), {})] * 2, "no call waits for a rank, so that none is started"


@pytest.mark.parametrize(
    ("answer", "absence"),
    [
        (DEAD, GONE_FROM_RAY),
        (GONE, Absence("silent", "its process can't be reached")),
        (FAILED, Absence("failed", "ValueError: bug")),
    ],
)
async def test_says_why_a_replica_does_not_answer(answer: Exception, absence: Absence) -> None:
    replicas = Replicas(0, 1)
    ranks = directory(replicas)
    await ranks.look()
    replicas.answers["replica-1"] = answer
    infos, absent = await ranks.look()
    assert infos == [rank_info(0)]
    assert absent["replica-1"].kind == absence.kind
    if absence.kind != "failed":
        assert absent["replica-1"] == absence


async def test_a_replica_that_hangs_hides_and_delays_no_other_and_is_back_when_it_answers() -> None:
    replicas = Replicas(0, 1)
    ranks = directory(replicas)
    await ranks.look()
    hung = replicas.hang(1)
    assert await ranks.look() == ([rank_info(0)], {"replica-1": Absence("silent")})

    # From now on nothing waits for it. Ranks that start or end meanwhile are seen.
    began = time.monotonic()
    for _ in range(10):
        assert await ranks.look() == ([rank_info(0)], {"replica-1": Absence("silent")})
    assert time.monotonic() - began < TIMEOUT_S
    replicas.answers["replica-2"] = rank_info(2)

    async def sees_both() -> bool:
        infos, _ = await ranks.look()
        return infos == [rank_info(0), rank_info(2)]

    await until(sees_both, "the new rank")
    del replicas.answers["replica-0"]
    infos, absent = await ranks.look()
    assert (infos, absent["replica-0"].kind) == ([rank_info(2)], "gone")

    hung.set_result(rank_info(1))
    replicas.answers["replica-1"] = rank_info(1)

    async def sees_it_again() -> bool:
        return await ranks.look() == ([rank_info(1), rank_info(2)], {})

    await until(sees_it_again, "back")
    replicas.calls.clear()
    await ranks.look()
    assert replicas.calls == [("describe", (), {})], "all together again"


async def test_a_replica_that_hangs_and_is_given_up_by_ray_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_directory, "GIVE_UP_S", 2 * TIMEOUT_S)
    replicas = Replicas(0, 1)
    ranks = directory(replicas)
    await ranks.look()
    replicas.hang(1)
    assert await ranks.look() == ([rank_info(0)], {"replica-1": Absence("silent")})
    del replicas.answers["replica-1"]

    async def is_gone() -> bool:
        _, absent = await ranks.look()
        return absent == {"replica-1": GONE_FROM_RAY}

    await until(is_gone, "gone")
    assert await ranks.look() == ([rank_info(0)], {})


async def test_several_look_at_once_while_a_replica_hangs() -> None:
    replicas = Replicas(0, 1)
    ranks = directory(replicas)
    await ranks.look()
    replicas.hang(1)
    for _ in range(3):
        looks = await asyncio.gather(*(ranks.look() for _ in range(5)))
        assert all(infos == [rank_info(0)] for infos, _ in looks)


async def test_a_replica_that_never_answered_is_asked_by_name_once_it_is_known() -> None:
    replicas = Replicas(0, 1)
    replicas.hang(1)
    ranks = directory(replicas)
    infos, absent = await ranks.look({"replica-1", "replica-7"})
    assert absent == {"replica-1": Absence("silent"), "replica-7": GONE_FROM_RAY}
    infos, _ = await ranks.look({"replica-0"})
    assert infos == [rank_info(0)]
