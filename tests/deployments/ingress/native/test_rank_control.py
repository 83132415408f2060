"""Signs of life and cache resets, with ranks whose answers are written down beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from app.deployments.ingress.native.rank_control import RankControl, flush_wait
from app.deployments.ingress.reports.health import ON_DEMAND
from app.deployments.messages import NotAddressed, RankInfo, Refusal
from app.errors import (
    EngineFailedError,
    InvalidRequestError,
    QueueFullError,
    RankCallError,
    RankFailedError,
    RankGoneError,
)
from app.generation import TokenChunk
from tests.support.fake_deployments import FakeCall, FakeRanks, RankStep, Silence
from tests.support.rank_info import rank_info

TOKEN = TokenChunk([7], 1, 0, "length")


class Directory:
    """The ranks at each poll, at last for ever."""

    def __init__(self, *polls: Sequence[RankInfo]) -> None:
        self._polls = list(polls)

    async def poll(self) -> list[RankInfo]:
        return list(self._polls.pop(0) if len(self._polls) > 1 else self._polls[0])


class Ranks(FakeRanks):
    """Ranks that also answer resets, one after another; by replica id."""

    def __init__(
        self,
        calls: dict[str, FakeCall] | None = None,
        resets: dict[str, list[bool | Exception]] | None = None,
    ) -> None:
        super().__init__(calls or {})
        self._resets = resets or {}

    async def reset_cache(self, replica_id: str, *, timeout_s: float) -> bool:
        answer = self._resets[replica_id].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def busy(rank: int, num_running: int, num_tokens: int = 3) -> RankInfo:
    info = rank_info(rank)
    load = [num_running, 0, num_tokens, 400, rank, 0, 0, 8, 0, 0]
    return replace(info, load=type(info.load)(*load))


def calls_of(*scripts: Sequence[RankStep]) -> dict[str, FakeCall]:
    return {f"replica-{rank}": FakeCall(script) for rank, script in enumerate(scripts)}


async def test_one_token_of_any_rank_is_a_sign_of_life() -> None:
    calls = calls_of([Silence()], [RankFailedError("broken")], [TOKEN])
    ranks = Ranks(calls)
    control = RankControl(ranks, Directory([busy(rank, 0) for rank in range(3)]), dp_size=3)
    assert await control.probe() == ({"rank": 2, "reason": None}, 200)
    assert [each.prompt_token_ids for each, _ in ranks.requests] == [[0]] * 3
    assert len({each.request_id for each, _ in ranks.requests}) == 3
    assert calls["replica-2"].num_cancelled == 1


async def test_the_least_busy_ranks_are_asked() -> None:
    ranks = Ranks({f"replica-{rank}": FakeCall([TOKEN]) for rank in range(5)})
    control = RankControl(ranks, Directory([busy(rank, 5 - rank) for rank in range(5)]), dp_size=5)
    assert (await control.probe())[0]["rank"] in (2, 3, 4)
    assert {replica_id for _, replica_id in ranks.requests} == {"replica-2", "replica-3", "replica-4"}


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (RankGoneError("it is gone"), "rank 0: it is gone"),
        (Refusal(EngineFailedError("the engine has stopped")), "rank 0: the engine has stopped"),
        (NotAddressed(), "rank 0: its replica is gone"),
    ],
)
async def test_why_no_rank_gives_a_sign(step: RankStep, reason: str) -> None:
    control = RankControl(Ranks(calls_of([step])), Directory([busy(0, 0)]), dp_size=1)
    assert await control.probe() == ({"rank": None, "reason": reason}, 503)


async def test_a_rank_that_ends_its_output_early_gives_none() -> None:
    control = RankControl(Ranks(calls_of([])), Directory([busy(0, 0)]), dp_size=1)
    assert await control.probe() == ({"rank": None, "reason": "rank 0: its output ended"}, 503)


async def test_a_rank_that_hangs_has_a_limited_time() -> None:
    calls = calls_of([Silence()])
    control = RankControl(Ranks(calls), Directory([busy(0, 0)]), dp_size=1, probe_s=0.05)
    report, status = await control.probe()
    assert (report["reason"], status) == ("no rank computed a token within 0.05 s", 503)


async def test_no_rank_answers_or_none_is_able() -> None:
    none = await RankControl(Ranks(), Directory([]), dp_size=1).probe()
    assert none == ({"rank": None, "reason": "no rank answers"}, 503)
    down = replace(busy(0, 0), unavailable="its worker is down")
    for dp_size in (0, 1):
        answer = await RankControl(Ranks(), Directory([down]), dp_size=dp_size).probe()
        assert answer == ({"rank": None, "reason": "rank 0: its worker is down"}, 503)


async def test_a_probe_starts_no_rank_where_there_may_be_none() -> None:
    answer = await RankControl(Ranks(), Directory([]), dp_size=0).probe()
    assert answer == ({"rank": None, "reason": ON_DEMAND}, 200)


@pytest.mark.parametrize("step", [Silence(), Refusal(QueueFullError("600 requests wait"))])
async def test_a_rank_too_busy_for_a_probe_is_alive_while_it_computes(step: RankStep) -> None:
    working = Directory([busy(0, 8, num_tokens=100)], [busy(0, 8, num_tokens=116)])
    answer = await RankControl(Ranks(calls_of([step])), working, dp_size=1).probe()
    assert answer == ({"rank": 0, "reason": None}, 200)


async def test_every_rank_is_flushed_and_each_answers() -> None:
    resets: dict[str, list[bool | Exception]] = {
        "replica-0": [True],
        "replica-1": [RankCallError("the engine can't do this")],
        "replica-2": [TimeoutError()],
    }
    directory = Directory([busy(rank, 0) for rank in range(3)])
    assert await RankControl(Ranks(resets=resets), directory, dp_size=4).flush(0) == [
        {"rank": 0, "flushed": True, "reason": None},
        {"rank": 1, "flushed": False, "reason": "the engine can't do this"},
        {"rank": 2, "flushed": False, "reason": "no answer within 10 s"},
        {"rank": 3, "flushed": False, "reason": "it doesn't answer"},
    ]


async def test_a_busy_rank_is_asked_again_while_there_is_time() -> None:
    def control() -> RankControl:
        resets: dict[str, list[bool | Exception]] = {"replica-0": [False, True]}
        return RankControl(Ranks(resets=resets), Directory([busy(0, 1)]), dp_size=1)

    (refused,) = await control().flush(0)
    assert not refused["flushed"]
    assert refused["reason"] == "it is busy, and its engine resets only when idle"
    (flushed,) = await control().flush(5)
    assert flushed["flushed"]


def test_how_long_a_flush_may_wait() -> None:
    assert flush_wait(None) == flush_wait("") == flush_wait("0") == 0
    assert flush_wait("30") == 30
    for wrong in ("-1", "61", "soon", "nan", "inf"):
        with pytest.raises(InvalidRequestError, match=r"timeout = .*; allowed: 0 to 60 seconds"):
            flush_wait(wrong)
