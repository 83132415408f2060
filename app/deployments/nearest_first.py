"""Sends a call to the nearest replica, or to another one where the caller has had no answer from that.

Ray Serve's own choice is the less busy of two replicas, by its count of the calls that run there. It learns
nothing from calls that get no answer, and goes on sending them to a replica that hangs or is cut off, also
when another one is on the caller's node. Here the caller says with the keyword argument `nth` how many
replicas, from the nearest on, it passes over.

Ray pickles this module by value into every handle, so it imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import LocalityMixin, PendingRequest, RequestRouter, RunningReplica

Replica = TypeVar("Replica")


class NearestFirst(LocalityMixin, RequestRouter):
    """Ray Serve's extension point for choosing replicas.

    All callers on one node have the same replicas near by. They share them by their own numbers: caller r
    begins with the r-th of those that are equally near.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Called once, by Ray."""
        try:
            self._first = serve.get_replica_context().rank.rank
        except RayServeException:  # the caller is no replica
            self._first = 0

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The `nth` replica; then, for when Ray gets no queue length from that, those behind it."""
        by_id = sorted(candidate_replicas, key=lambda replica: replica.replica_id.unique_id)
        nth = pending_request.kwargs.get("nth", 0) if pending_request else 0
        return [[each] for each in in_order(self.rank_replicas_via_locality(by_id), self._first, nth)]


def in_order(by_distance: Sequence[Sequence[Replica]], first: int, nth: int) -> list[Replica]:
    """The nearest first, but for the `nth` nearest, which go to the end.

    Args:
        by_distance: replicas that are equally near, the nearest ones first.
        first: with which of the equally near ones to begin; counted around.
        nth: how many to pass over; counted around.
    """
    return _turned([each for group in by_distance for each in _turned(group, first)], nth)


def _turned(replicas: Sequence[Replica], by: int) -> list[Replica]:
    start = by % len(replicas) if replicas else 0
    return [*replicas[start:], *replicas[:start]]
