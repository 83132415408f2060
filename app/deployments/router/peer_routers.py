"""The other routers: each receives within milliseconds what this one reserves.

Without that, routers that choose at the same time take the same rank for idle, until that rank's next report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ray import serve

from app.deployments.background import BatchSender
from app.deployments.messages import PeerReservation
from app.deployments.router_client import RouterClient

INTERVAL_S: Final = 0.02
"""Between two calls. One takes 2 to 3 ms of the sender's processor time, whatever it says, half of that of
each receiver's, and 1 to 3 ms to arrive."""


class PeerRouters:
    """Sends the other replicas of this router's deployment what it reserves; made inside a replica.

    Args:
        num_routers: replicas of the deployment; with one, nothing is sent.
    """

    def __init__(self, num_routers: int) -> None:
        context = serve.get_replica_context()
        self._me = context.replica_id.unique_id
        self._is_alone = num_routers == 1
        self._routers = RouterClient(serve.get_deployment_handle(context.deployment, context.app_name))
        self._sender: BatchSender[PeerReservation] = BatchSender(self._send, interval_s=INTERVAL_S)

    def add(self, reservation: PeerReservation) -> None:
        """Send it soon; returns at once."""
        if not self._is_alone:
            self._sender.put(reservation)

    async def _send(self, reservations: Sequence[PeerReservation]) -> None:
        await self._routers.add_peer_reservations(self._me, reservations)
