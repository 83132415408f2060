"""The ranks that are there now, as every replica of the `DPRank` deployment describes itself.

    look ──▶ broadcast: all describe themselves ──▶ those that are missing from it, each by name
         ├── Ray has none at all: all are gone. A call by name would wait for one to start, and where ranks
         │   autoscale it would have one started
         └── while one doesn't answer: every known replica by name, new ones searched for beside

A broadcast gives its answers all together, so one replica that hangs would hide the others. Once one is known
to hang, its call stays out, and the others are asked without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from app.deployments.background import detached_task
from app.deployments.messages import RankInfo
from app.deployments.rank_client import RankClient
from app.errors import RankCallError, RankFailedError, RankGoneError, RankUnreachableError
from app.routing.tracking.description import Absence

GIVE_UP_S = 5.0
"""After so long a call without an answer is made again: one that waits at a replica which hangs doesn't tell
that Ray has given this replica up since."""
GONE = Absence("gone", "Ray no longer has it: it is being stopped, or has died")


class RankDirectory:
    """Asks every rank to describe itself.

    Args:
        ranks: calls them.
        timeout_s: what a rank gets to answer. The look in which one begins to hang takes 1.5 times as long,
            the next ones no longer than the others need.
    """

    def __init__(self, ranks: RankClient, *, timeout_s: float) -> None:
        self._ranks = ranks
        self._timeout_s = timeout_s
        self._known: set[str] = set()
        """Replica ids that aren't known to be gone."""
        self._waiting: dict[str, asyncio.Task[RankInfo]] = {}
        """The calls to replicas that let the timeout pass."""
        self._search: asyncio.Task[None] | None = None

    async def poll(self) -> list[RankInfo]:
        """The ranks that answered in time, by number: none while none has started."""
        infos, _ = await self.look()
        return infos

    async def look(self, also: Iterable[str] = ()) -> tuple[list[RankInfo], dict[str, Absence]]:
        """The ranks that answered in time, by number, and why others didn't, by replica id.

        Args:
            also: replicas to ask by name that may never have answered here.
        """
        self._known |= set(also)
        self._forget_late_answers()
        infos, timeout_s = {}, self._timeout_s
        if self._waiting:
            self._search_for_others()
        else:
            try:
                answers = await self._ranks.describe_all(timeout_s=timeout_s)
                if answers is None:
                    gone, self._known = self._known, set()
                    return [], dict.fromkeys(gone, GONE)
                infos = {info.replica_id: info for info in answers}
            except TimeoutError:
                timeout_s /= 2  # who is alive answers within milliseconds, and all have had their time
        asked = await self._ask(self._known - infos.keys(), timeout_s)
        infos |= {name: answer for name, answer in asked.items() if isinstance(answer, RankInfo)}
        absent = {name: answer for name, answer in asked.items() if isinstance(answer, Absence)}
        self._known |= infos.keys()
        self._known -= {name for name, absence in absent.items() if absence.kind == "gone"}
        return sorted(infos.values(), key=lambda info: info.rank), absent

    async def _ask(self, names: Collection[str], timeout_s: float) -> Mapping[str, RankInfo | Absence]:
        """What each of these replicas answers; for one that was late before, nothing waits."""
        new = {name: self._call(name) for name in names if name not in self._waiting}
        if new:
            await asyncio.wait(new.values(), timeout=timeout_s)
        answers: dict[str, RankInfo | Absence] = {}
        for name in names:
            task = new.get(name) or self._waiting.pop(name, None)
            if task is None:  # its call has just ended, for another look
                continue
            if task.done():
                answers[name] = _answer(task)
            else:
                answers[name] = Absence("silent")
                if self._waiting.setdefault(name, task) is not task:
                    task.cancel()
        return answers

    def _forget_late_answers(self) -> None:
        """A replica that has answered since is asked again: its answer may be old by now."""
        for name, task in list(self._waiting.items()):
            if task.done():
                del self._waiting[name]
                if isinstance(task.exception(), TimeoutError):
                    self._waiting[name] = self._call(name)

    def _call(self, name: str) -> asyncio.Task[RankInfo]:
        return detached_task(self._ranks.describe(replica_id=name, timeout_s=GIVE_UP_S))

    def _search_for_others(self) -> None:
        """Have replicas found that aren't known yet, for the next look: nothing waits for this one."""
        if self._search is None or self._search.done():
            self._search = detached_task(self._find_others())

    async def _find_others(self) -> None:
        with suppress(RankCallError, TimeoutError):
            while True:
                info = await self._ranks.describe_other(self._known, timeout_s=self._timeout_s)
                if info is None:
                    return
                self._known.add(info.replica_id)


def _answer(task: asyncio.Task[RankInfo]) -> RankInfo | Absence:
    """What a call that has ended says of its replica."""
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, RankUnreachableError):
        return Absence("silent", "its process can't be reached")
    if isinstance(error, RankGoneError):
        return GONE
    if isinstance(error, RankFailedError):
        # Of a failure elsewhere Ray makes a whole traceback: what happened is its last line.
        *_, last_line = ["", *str(error).strip().splitlines()]
        return Absence("failed", last_line)
    if isinstance(error, RankCallError | TimeoutError):
        return Absence("silent")
    raise error
