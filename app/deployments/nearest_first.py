"""Sends a call to the nearest replica, or to another one where the caller has had no answer from that.

Ray Serve's own choice is the less busy of two replicas, by its count of the calls that run there. It learns
nothing from calls that get no answer, and goes on sending them to a replica that hangs or is cut off, also
when another one is on the caller's node. Here the caller says with the keyword argument `nth` how many
replicas, from the nearest on, it passes over.

Ray pickles this module by value into every handle, so it holds nothing else.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import LocalityMixin, PendingRequest, RequestRouter, RunningReplica


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
        order: list[RunningReplica] = []
        for equally_near in self.rank_replicas_via_locality(by_id):
            order += self._turned(equally_near, self._first)
        nth = pending_request.kwargs.get("nth", 0) if pending_request else 0
        return [[replica] for replica in self._turned(order, nth)]

    @staticmethod
    def _turned(replicas: list[RunningReplica], by: int) -> list[RunningReplica]:
        start = by % len(replicas) if replicas else 0
        return replicas[start:] + replicas[:start]
