"""Sends a call to the one replica that it names, instead of to whichever is least busy.

A call names its replica with the keyword argument `replica_id`. When that replica is gone, the call goes to
any other, which sees that it isn't addressed and says so: raising here would leave the caller waiting,
because Ray Serve doesn't propagate exceptions out of `choose_replicas`.
"""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class ReplicaAddressing(RequestRouter):
    """Ray Serve's extension point for choosing replicas, reduced to an address."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The addressed replica alone, or all when there is no such replica."""
        replica_id = pending_request.kwargs.get("replica_id") if pending_request else None
        addressed = [replica for replica in candidate_replicas if replica.replica_id.unique_id == replica_id]
        return [addressed or candidate_replicas]
