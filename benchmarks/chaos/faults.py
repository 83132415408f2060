"""Carries out a plan: does each fault to the graph, and waits until it has recovered."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from benchmarks.chaos.graph import REMEMBERED, STALL_TIMEOUT_S, Graph, GraphError
from benchmarks.chaos.plan import Fault
from benchmarks.chaos.processes import (
    BUSY_FOR_S,
    HungThread,
    NotOursError,
    busiest,
    pids_of,
    send_signal,
    thread_times,
)
from benchmarks.graphs.replicas import CONTROLLER

CAN_HAPPEN_WITHIN_S = 30.0
"""A fault waits so long for another rank that is well; then it is left out."""
RECOVERS_WITHIN_S = 240.0
"""A rank may have to wait until a deploy that is under way comes to it."""
POLL_S = 0.2
WRONG_PATH = "/no/such/model"

Item = TypeVar("Item")


@dataclass
class Happened:
    """What became of a fault.

    Attributes:
        fault: as it was planned.
        what: what was done, for people to read; empty before it was done, or when it never was.
        began_at, ended_at: monotonic; the end is when the graph had recovered.
        skipped: why it was left out.
        violation: what the graph didn't do in time.
    """

    fault: Fault
    what: str = ""
    began_at: float = 0.0
    ended_at: float = 0.0
    skipped: str = ""
    violation: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """From the fault until the graph had recovered; None: it was left out."""
        return (self.began_at, self.ended_at or float("inf")) if self.what else None


class Skipped(Exception):
    """A fault can't be done now. The message says why."""


class Faults:
    """Does what a plan says.

    Attributes:
        happened: every fault of the plan.
        ingress_deaths: when ingresses were killed, monotonic.
    """

    def __init__(self, graph: Graph, plan: Sequence[Fault], said: Callable[[str], object]) -> None:
        """`said` is told each thing that happens, for people to read."""
        self._graph = graph
        self._said = said
        self._unwell: set[int] = set()
        """Ranks' processes that were killed, or stand still."""
        self._choosing = asyncio.Lock()
        self._deploying = asyncio.Lock()
        self._num_deploys = 0
        self.happened = [Happened(fault) for fault in plan]
        self.ingress_deaths: list[float] = []

    async def run(self) -> None:
        """Do every fault at its time; returns when the graph has recovered from all."""
        started = time.monotonic()

        async def at_its_time(each: Happened) -> None:
            await asyncio.sleep(max(0.0, started + each.fault.at_s - time.monotonic()))
            await self._do(each)

        async with asyncio.TaskGroup() as group:
            for each in self.happened:
                group.create_task(at_its_time(each))

    def was_rank_hurt(self, since: float) -> bool:
        """Whether any fault that ranks feel went on since then."""
        return any(
            each.interval is not None and each.interval[1] > since
            for each in self.happened
            if each.fault.kind not in ("kill_router", "kill_ingress", "kill_controller")
        )

    async def _do(self, each: Happened) -> None:
        fault = each.fault
        try:
            match fault.kind:
                case "kill_rank":
                    await self._kill_rank(each)
                case "kill_router":
                    await self._kill(each, "Router", lambda: self._graph.num_routers)
                case "kill_ingress":
                    await self._kill(each, "Ingress", lambda: self._graph.num_ingresses)
                case "kill_controller":
                    await self._kill(each, CONTROLLER, lambda: 1)
                case "stop_rank_shortly" | "stop_rank_for_long":
                    await self._stop_rank(each)
                case "hang_engine":
                    await self._hang_engine(each)
                case "redeploy" | "resize" | "wrong_deploy":
                    async with self._deploying:
                        await self._deploy(each)
        except Skipped as skipped:
            each.skipped = str(skipped)
        except (GraphError, NotOursError) as error:
            each.violation = f"{fault.kind} at {fault.at_s} s: {error}"
        each.ended_at = time.monotonic()
        lasted = f"{each.ended_at - each.began_at:.1f} s" if each.what else ""
        self._said(f"{fault.kind}: {each.violation or each.skipped or f'recovered after {lasted}'}")

    def _begin(self, each: Happened, what: str) -> None:
        each.what, each.began_at = what, time.monotonic()
        self._said(f"{each.fault.kind}: {what}")

    async def _kill(self, each: Happened, kind: str, wanted: Callable[[], int]) -> None:
        pids = pids_of(kind)
        pid = _picked(pids, each.fault)
        if kind == "Ingress":
            if len(pids) < 2:
                raise Skipped("no other ingress is there")
            self.ingress_deaths.append(time.monotonic())
        send_signal(pid, kind, signal.SIGKILL)
        self._begin(each, f"{kind} {pid}")

        async def is_back() -> bool:
            pids = pids_of(kind)
            return pid not in pids and len(pids) >= wanted()

        await self._graph.until(is_back, lambda: f"{kind} {pid} replaced", RECOVERS_WITHIN_S)

    async def _kill_rank(self, each: Happened) -> None:
        pid = await self._choose_rank(each.fault)
        send_signal(pid, "DPRank", signal.SIGKILL)
        self._begin(each, f"rank {pid}")
        await self._until_ranks_are_ready(without=pid)

    async def _stop_rank(self, each: Happened) -> None:
        pid = await self._choose_rank(each.fault)
        send_signal(pid, "DPRank", signal.SIGSTOP)
        lasts_s = each.fault.lasts * STALL_TIMEOUT_S
        self._begin(each, f"rank {pid} for {lasts_s:.1f} s")
        await asyncio.sleep(lasts_s)
        with suppress(NotOursError):  # it may have been replaced
            send_signal(pid, "DPRank", signal.SIGCONT)
        self._unwell.discard(pid)
        await self._until_ranks_are_ready()

    async def _hang_engine(self, each: Happened) -> None:
        pid = await self._choose_rank(each.fault)
        before = thread_times(pid)
        await asyncio.sleep(BUSY_FOR_S)
        after = thread_times(pid)
        if not after:
            raise Skipped(f"rank {pid} has ended by itself")
        try:
            hung = HungThread(pid, "DPRank", busiest(before, after))
        except OSError as error:
            self._unwell.discard(pid)
            raise Skipped(f"ptrace isn't possible here: {error}") from None
        lasts_s = each.fault.lasts * STALL_TIMEOUT_S
        self._begin(each, f"the busiest thread of rank {pid} for {lasts_s:.1f} s")
        deadline = time.monotonic() + lasts_s
        while time.monotonic() < deadline and not hung.has_ended():
            await asyncio.sleep(POLL_S)
        hung.release()
        self._unwell.discard(pid)
        await self._until_ranks_are_ready()

    async def _choose_rank(self, fault: Fault) -> int:
        """A rank's process that is well, while another is; from now on it counts as unwell."""
        well: list[int] = []

        async def is_possible() -> bool:
            ready = set(await self._graph.ready_ranks())
            well[:] = [pid for pid in pids_of("DPRank") if pid in ready - self._unwell]
            return len(well) > 1

        try:
            async with asyncio.timeout(CAN_HAPPEN_WITHIN_S), self._choosing:
                await self._graph.until(is_possible, lambda: "", CAN_HAPPEN_WITHIN_S)
                pid = _picked(well, fault)
                self._unwell.add(pid)
        except (GraphError, TimeoutError):
            raise Skipped("no other rank is well") from None
        return pid

    async def _until_ranks_are_ready(self, without: int | None = None) -> None:
        """Wait until all ranks are ready, but for those that another fault has just hurt."""

        async def are_ready() -> bool:
            unwell = self._unwell.intersection(pids_of("DPRank"))
            well = set(await self._graph.ready_ranks()) - unwell
            return without not in well and len(well) >= self._graph.num_ranks - len(unwell)

        await self._graph.until(are_ready, lambda: "all ranks ready again", RECOVERS_WITHIN_S)

    async def _deploy(self, each: Happened) -> None:
        fault = each.fault
        if fault.kind == "wrong_deploy":
            await self._deploy_what_is_wrong(each)
            return
        self._num_deploys += 1
        # A setting that changes nothing that requests could see.
        remembered = REMEMBERED + self._num_deploys
        changes: dict[str, Any] = {"routing": {"remembered_decisions": remembered}}
        what = f"remembered_decisions: {remembered}"
        if fault.kind == "resize":
            changes, what = {"dp_size": fault.dp_size}, f"dp_size: {self._graph.num_ranks} -> {fault.dp_size}"
        old = {pid for kind in ("DPRank", "Router", "Ingress") for pid in pids_of(kind)}
        self._begin(each, what)
        self._graph.args = _changed(self._graph.args, changes)
        await self._graph.deploy(self._graph.args)
        await self._until_deployed(old)

    async def _deploy_what_is_wrong(self, each: Happened) -> None:
        self._begin(each, f"model.path: {WRONG_PATH}")
        await self._graph.deploy(_changed(self._graph.args, {"model": {"path": WRONG_PATH}}))
        last = ("", "")

        async def is_refused() -> bool:
            nonlocal last
            last = await self._graph.status()
            return last[0] == "DEPLOY_FAILED"

        await self._graph.until(is_refused, lambda: f"refused; its status is {last}", RECOVERS_WITHIN_S)
        if WRONG_PATH not in last[1]:
            raise GraphError(f"the reason doesn't name the field: {last[1][-300:]}")
        await self._graph.deploy(self._graph.args)
        await self._until_deployed(set())

    async def _until_deployed(self, old: set[int]) -> None:
        """Wait until what was deployed runs, and nothing of `old`."""
        last = ("", "")

        async def is_deployed() -> bool:
            nonlocal last
            # DEPLOY_FAILED may pass: so Ray calls it too when a replica that has just started is killed.
            last = await self._graph.status()
            living = {pid for kind in ("DPRank", "Router", "Ingress") for pid in pids_of(kind)}
            return last[0] == "RUNNING" and not old & living and await self._graph.is_whole()

        await self._graph.until(
            is_deployed, lambda: f"deployed: {last}, {self._graph.seen}", RECOVERS_WITHIN_S
        )


def _picked(candidates: Sequence[int], fault: Fault) -> int:
    """One of `candidates`, which are oldest first."""
    if not candidates:
        raise Skipped("none is there that it could happen to")
    return candidates[min(int(fault.pick * len(candidates)), len(candidates) - 1)]


def _changed(args: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`args` with `changes`; mappings are merged."""
    merged = dict(args)
    for key, value in changes.items():
        merged[key] = _changed(args[key], value) if isinstance(value, dict) else value
    return merged
