"""Every attempt of this ingress that hasn't ended, by the replica that works on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from app.deployments.ingress.dispatch.attempt import Attempt
from app.deployments.messages import RankReplica


class LiveAttempts:
    """The attempts that haven't ended. One that is moved is no longer among them.

    `RankWatch` asks which there are, and moves attempts away from those that can't go on:
    see `Attempt.move`. All on one event loop.
    """

    def __init__(self) -> None:
        self._attempts: dict[RankReplica, set[Attempt]] = {}
        self._when_some_begin: Callable[[], object] = lambda: None

    def when_some_begin(self, call: Callable[[], object]) -> None:
        """Have `call` called whenever there are attempts again after there were none; it must not wait."""
        self._when_some_begin = call

    def __iter__(self) -> Iterator[Attempt]:
        """All of them; they may end while this is iterated."""
        return iter([attempt for attempts in self._attempts.values() for attempt in attempts])

    def __len__(self) -> int:
        return sum(map(len, self._attempts.values()))

    def replicas(self) -> list[RankReplica]:
        """The replicas that work on some."""
        return list(self._attempts)

    def on(self, replica: RankReplica) -> list[Attempt]:
        """Those that this replica works on; they may end while the list is used."""
        return list(self._attempts.get(replica, ()))

    def add(self, attempt: Attempt) -> None:
        """This attempt begins."""
        were_some = bool(self._attempts)
        self._attempts.setdefault(attempt.replica, set()).add(attempt)
        if not were_some:
            self._when_some_begin()

    def remove(self, attempt: Attempt) -> None:
        """This attempt has ended, or was moved."""
        attempts = self._attempts[attempt.replica]
        attempts.remove(attempt)
        if not attempts:
            del self._attempts[attempt.replica]
