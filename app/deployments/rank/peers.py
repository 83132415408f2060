"""The other replicas of the `DPRank` deployment, as one of them asks them."""

from __future__ import annotations

import asyncio
import logging

from ray import serve

from app.deployments.messages import Claim
from app.deployments.rank_client import RankClient

logger = logging.getLogger("ray.serve")

CLAIM_TIMEOUT_S = 2.0
"""Seconds that every peer gets to answer; it answers from memory."""


class RayPeers:
    """Asks through a handle on the replica's own deployment; made inside a replica.

    Ray lets a handle reach replicas that run. One that starts can ask, and isn't asked; one that is being
    stopped isn't asked any more, and Ray's status counts it.
    """

    def __init__(self) -> None:
        context = serve.get_replica_context()
        self._replica_id = context.replica_id.unique_id
        self._app_name, self._deployment = context.app_name, context.deployment
        self._ranks = RankClient(serve.get_deployment_handle(context.deployment, context.app_name))

    async def exchange(self, claim: Claim) -> list[Claim] | None:
        """See `Peers`."""
        try:
            claims = await self._ranks.exchange_claims(claim, timeout_s=CLAIM_TIMEOUT_S)
        except TimeoutError:
            return None
        return [each for each in claims if each.replica_id != self._replica_id]

    async def may_hold_ports(self) -> bool:
        """See `Peers`. While the controller doesn't say, one may."""
        try:
            status = await asyncio.to_thread(serve.status)
            states = status.applications[self._app_name].deployments[self._deployment].replica_states
        except Exception as error:  # whatever Ray raises while its controller starts again
            logger.warning("Ray doesn't say which replicas are being stopped: %r", error)
            return True
        return any(state == "STOPPING" and num_replicas for state, num_replicas in states.items())
