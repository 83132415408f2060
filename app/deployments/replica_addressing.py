"""Sends a call to the replica that it names, instead of to the least busy one.

A call names its replica with the keyword argument `replica_id`, or with `other_than` those that it isn't for.
When there is no such replica, the call goes to any, which sees that it isn't meant and answers
`NotAddressed`. An exception raised here would leave the caller waiting: Ray Serve doesn't propagate
exceptions out of `choose_replicas`.

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
        """The replicas that are meant, or all replicas when there is none of them."""
        given = pending_request.kwargs if pending_request else {}
        replica_id, others = given.get("replica_id"), given.get("other_than")
        if replica_id is not None:
            meant = [each for each in candidate_replicas if each.replica_id.unique_id == replica_id]
        else:
            meant = [each for each in candidate_replicas if each.replica_id.unique_id not in (others or ())]
        return [meant or candidate_replicas]
