"""What is asked of ranks directly, past the routers: a token as a sign of life, and to forget a cache."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Protocol

from app.deployments.background import detached_task
from app.deployments.ingress.dispatch.attempt import GenerateCall
from app.deployments.ingress.reports.health import ON_DEMAND
from app.deployments.messages import Json, RankInfo, Refusal
from app.errors import InvalidRequestError, KvbeaconError, QueueFullError, shown
from app.generation import GenerateRequest, SamplingParams, TokenChunk

PROBED_RANKS = 3
"""Ranks that are asked at once; one token of any of them is enough."""
PROBE_S = 20.0
"""Seconds that they get together, as in SGLang."""
PROGRESS_INTERVAL_S = 1.0
"""Seconds between two looks whether a busy rank computes."""

RESET_S = 10.0
"""Seconds that one rank gets for its answer."""
MAX_FLUSH_WAIT_S = 60.0
RESET_RETRY_S = 0.2
"""Pause after a rank that was too busy."""

_FIRST = -(2**31)
"""The priority that is served before every other."""


class Ranks(Protocol):
    """What is needed to call one; `RankClient` has it."""

    def generate(self, request: GenerateRequest, *, replica_id: str) -> GenerateCall:
        """Start a request on a rank."""

    async def reset_cache(self, replica_id: str, *, timeout_s: float) -> bool:
        """Whether it did. Raises `RankCallError`, or `TimeoutError` after `timeout_s` seconds."""


class Directory(Protocol):
    """Knows which ranks there are; `RankDirectory` has it."""

    async def poll(self) -> list[RankInfo]:
        """The ranks that answer."""


class RankControl:
    """Asks ranks directly: no router reserves or remembers anything of it.

    Args:
        ranks: calls them.
        directory: knows which there are.
        dp_size: how many there should be at least.
        probe_s: seconds within which some rank must give a sign of life.
    """

    def __init__(self, ranks: Ranks, directory: Directory, *, dp_size: int, probe_s: float = PROBE_S) -> None:
        self._ranks = ranks
        self._directory = directory
        self._dp_size = dp_size
        self._probe_s = probe_s

    async def probe(self) -> tuple[Json, int]:
        """Which rank has computed a token just now, and the HTTP status: 503 if none has.

        `rank` is then null, and `reason` says why. Where there may be no rank, none is started, and that is
        no failure: who asks this all the time would keep one running.

        The least busy ranks are asked for a token after a prompt of one token, which fills no block. A rank
        that is too busy to begin it is alive as long as it computes for others.
        """
        infos = await self._directory.poll()
        if not infos and not self._dp_size:
            return {"rank": None, "reason": ON_DEMAND}, 200
        report = await self._probe(infos)
        return report, 503 if report["rank"] is None else 200

    async def _probe(self, infos: Sequence[RankInfo]) -> Json:
        able = sorted((info for info in infos if info.unavailable is None), key=_num_requests)
        if not able:
            reasons = [f"rank {info.rank}: {info.unavailable}" for info in infos]
            return {"rank": None, "reason": "; ".join(reasons) or "no rank answers"}
        asked = [detached_task(self._first_token(info)) for info in able[:PROBED_RANKS]]
        watch = detached_task(self._busy_rank(infos))
        try:
            async with asyncio.timeout(self._probe_s):
                return await _first_sign_of_life(asked, watch)
        except TimeoutError:
            return {"rank": None, "reason": f"no rank computed a token within {self._probe_s:g} s"}
        finally:
            for task in (*asked, watch):
                task.cancel()

    async def _first_token(self, info: RankInfo) -> int:
        """The rank, once it has computed a token. Raises `KvbeaconError` if it can't."""
        params = SamplingParams(1, temperature=0, ignore_eos=True)
        request = GenerateRequest(f"health-{uuid.uuid4().hex}", [0], params, priority=_FIRST)
        call = self._ranks.generate(request, replica_id=info.replica_id)
        try:
            message = await anext(call)
        except (KvbeaconError, StopAsyncIteration) as error:
            raise KvbeaconError(f"rank {info.rank}: {str(error) or 'its output ended'}") from None
        finally:
            call.cancel()
        if isinstance(message, Refusal) and isinstance(message.error, QueueFullError):
            await asyncio.sleep(self._probe_s)  # meanwhile the rank may show that it computes
        if not isinstance(message, TokenChunk):
            reason = message.error if isinstance(message, Refusal) else "its replica is gone"
            raise KvbeaconError(f"rank {info.rank}: {reason}")
        return info.rank

    async def _busy_rank(self, before: Sequence[RankInfo]) -> int:
        """A rank that computes for others, once there is one."""
        earlier = {info.replica_id: _work_done(info) for info in before}
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            for info in await self._directory.poll():
                if _work_done(info) != earlier.setdefault(info.replica_id, _work_done(info)):
                    return info.rank

    async def flush(self, timeout_s: float) -> list[Json]:
        """Have every rank forget its cached blocks. Returns each one's `{"rank", "flushed", "reason"}`.

        Args:
            timeout_s: how long a rank may say that it is too busy; some engines reset only when idle.
        """
        infos = await self._directory.poll()
        flushes = [detached_task(self._flush_one(info, timeout_s)) for info in infos]
        reasons = await asyncio.gather(*flushes)
        missing = set(range(self._dp_size)) - {info.rank for info in infos}
        answers = [
            *((info.rank, reason) for info, reason in zip(infos, reasons, strict=True)),
            *((rank, "it doesn't answer") for rank in missing),
        ]
        return [
            {"rank": rank, "flushed": reason is None, "reason": reason}
            for rank, reason in sorted(answers, key=lambda answer: answer[0])
        ]

    async def _flush_one(self, info: RankInfo, timeout_s: float) -> str | None:
        """Why the rank couldn't; None: it has."""
        deadline = time.monotonic() + timeout_s
        try:
            while not await self._ranks.reset_cache(info.replica_id, timeout_s=RESET_S):
                if time.monotonic() >= deadline:
                    return "it is busy, and its engine resets only when idle"
                await asyncio.sleep(RESET_RETRY_S)
        except TimeoutError:
            return f"no answer within {RESET_S:g} s"
        except KvbeaconError as error:
            return str(error)
        return None


async def _first_sign_of_life(asked: Sequence[asyncio.Task[int]], watch: asyncio.Task[int]) -> Json:
    """The first rank that shows one. There is none once every rank that was asked has failed."""
    reasons: list[str] = []
    waiting = {*asked, watch}
    while waiting - {watch}:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.exception()
            if error is None:
                return {"rank": task.result(), "reason": None}
            reasons.append(str(error))
    return {"rank": None, "reason": "; ".join(reasons)}


def flush_wait(timeout: str | None) -> float:
    """The query's `timeout` in seconds, 0 by default. Raises `InvalidRequestError` if it isn't allowed."""
    try:
        seconds = float(timeout or 0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_FLUSH_WAIT_S:
        message = f"timeout = {shown(timeout)}; allowed: 0 to {MAX_FLUSH_WAIT_S:g} seconds"
        raise InvalidRequestError(message, param="timeout")
    return seconds


def _num_requests(info: RankInfo) -> int:
    return info.load.num_running_reqs + info.load.num_waiting_reqs


def _work_done(info: RankInfo) -> tuple[int, int]:
    """What changes while a rank computes, with every block that fills."""
    return info.load.total_prefill_uncached_tokens, info.load.num_tokens
