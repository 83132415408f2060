"""Sends a call to the replica that it names, instead of to the least busy one.

A call names its replica with the keyword argument `replica_id`. When that replica is gone, the call goes to
any other replica, which sees that it isn't the one that is meant and answers `NotAddressed`. An exception
raised here would leave the caller waiting: Ray Serve doesn't propagate exceptions out of `choose_replicas`.

Ray pickles this module by value into every handle, so it holds nothing else.
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
        """The named replica alone, or all replicas when it isn't there."""
        replica_id = pending_request.kwargs.get("replica_id") if pending_request else None
        addressed = [replica for replica in candidate_replicas if replica.replica_id.unique_id == replica_id]
        return [addressed or candidate_replicas]
