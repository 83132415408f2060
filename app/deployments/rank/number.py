"""The number of a replica: taken at its start, and moved when Ray, or a peer, gives cause for it.

    Ray: reconfigure(rank) ─┐
    a peer's claim ─────────┼─▶ look at all peers ─▶ `next_number` ─▶ move there ─▶ look once more
    the first call ─────────┤
    every second, while the ┘
    number isn't Ray's

A replica whose number is Ray's, and whose last look found no rival, asks no other: a thousand don't poll each
other. A rival that comes later is told by its own look, and tells this one with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from app.deployments.messages import Claim
from app.deployments.rank.claims import next_number, rivals, surplus_number
from app.errors import EndpointInUseError, EngineFailedError

logger = logging.getLogger("ray.serve")

RETRY_S = 1.0
"""Seconds between two looks at the peers while the number isn't Ray's."""


class Peers(Protocol):
    """The other replicas of the deployment; `RayPeers` asks them."""

    async def exchange(self, claim: Claim) -> list[Claim] | None:
        """Tell `claim` to every other replica, and hear theirs; None when some don't answer in time."""

    async def may_hold_ports(self) -> bool:
        """Whether a replica that doesn't hear any more, as it is being stopped, may still hold ports."""


class Place(Protocol):
    """Where a replica is under a number: its ports, what it publishes."""

    def ports_of(self, number: int) -> frozenset[int]:
        """The ports that are planned for `number`."""

    async def open(self, number: int, *, at_once: bool) -> frozenset[int]:
        """Be `number` from now on; what was open before is closed once this is done.

        Args:
            number: beyond the deployment's, it gets other ports than those planned where these are taken.
            at_once: don't wait for a port to become free.

        Returns:
            The ports that are bound.

        Raises:
            EndpointInUseError: a port is taken; nothing has changed.
        """


class RankNumber:
    """Keeps one replica's number at what Ray says and no living peer holds.

    Args:
        claim: the replica's, which holds nothing yet.
        first_surplus: numbers from here on are for those whose own isn't free.
        peers: the other replicas.
        place: what moves.
        on_peers: called with the peers' claims at every look.

    Attributes:
        claim: the replica's now.
        num_conflicts: times that a peer was seen to hold the same number.
    """

    def __init__(
        self,
        claim: Claim,
        first_surplus: int,
        peers: Peers,
        place: Place,
        *,
        on_peers: Callable[[Sequence[Claim]], None] = lambda peers: None,
        retry_s: float = RETRY_S,
    ) -> None:
        self.claim = claim
        self.num_conflicts = 0
        self._first_surplus = first_surplus
        self._peers = peers
        self._place = place
        self._on_peers = on_peers
        self._retry_s = retry_s
        self._is_called = False
        self._cause = asyncio.Event()
        self._seen: frozenset[str] = frozenset()
        """Who held the same number at the last look."""
        self._last_words = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """The number that the replica is now."""
        assert self.claim.held is not None, "not started"
        return self.claim.held

    async def take(self) -> list[Claim]:
        """Hold a first number: Ray's, or one beyond all where a living replica has that. Returns the peers.

        Raises:
            EndpointInUseError: a port of Ray's number is taken, and by no replica of this deployment.
        """
        peers = await self._peers.exchange(self.claim) or []
        number = next_number(self.claim, peers, self._first_surplus)
        try:
            await self._move(number, at_once=False)
        except EndpointInUseError:
            if not (self._held_by(peers, number) or await self._peers.may_hold_ports()):
                raise
            await self._move(surplus_number([*peers, self.claim], self._first_surplus), at_once=True)
        return peers

    def start(self) -> None:
        """Follow Ray and the peers from now on, on the running event loop."""
        if self.claim.held != self.claim.wanted:
            self._cause.set()
        self._task = asyncio.create_task(self._keep())

    def stop(self) -> None:
        """Leave the number as it is."""
        if self._task is not None:
            self._task.cancel()

    def want(self, number: int) -> None:
        """Ray gives the replica this number now. Returns at once."""
        if number != self.claim.wanted:
            logger.info("rank %s: Ray renumbers it to %d", self.claim.held, number)
            self.claim = replace(self.claim, wanted=number)
            self._cause.set()

    def called(self) -> None:
        """The replica was called: from now on peers see it, also those that started when it did."""
        if not self._is_called:
            self._is_called = True
            self._cause.set()

    def hear(self, claim: Claim) -> Claim:
        """What a peer claims. Returns this replica's claim."""
        if claim.replica_id != self.claim.replica_id and self.claim.held in (claim.held, claim.wanted):
            self._cause.set()
        return self.claim

    async def _keep(self) -> None:
        while True:
            await self._cause.wait()
            self._cause.clear()
            try:
                is_settled = await self._look()
            except EngineFailedError:
                return  # Ray will replace the replica
            except Exception:
                logger.exception("rank %s: looking at its number failed; trying again", self.claim.held)
                is_settled = False
            if not is_settled:
                await asyncio.sleep(self._retry_s)
                self._cause.set()

    async def _look(self) -> bool:
        """Compare with the peers, and move if need be. Whether nothing is left to be looked at."""
        peers = await self._peers.exchange(self.claim)
        if peers is None:
            return self.claim.held == self.claim.wanted
        self._on_peers(peers)
        self._report_conflicts(peers)
        number = next_number(self.claim, peers, self._first_surplus)
        if number == self.claim.held:
            self._say(f"rank {number}: Ray's number for it, {self.claim.wanted}, is another replica's still")
            return number == self.claim.wanted
        try:
            await self._move(number, at_once=True)
        except EndpointInUseError as error:
            self._say(f"rank {self.claim.held}: can't become rank {number} yet: {error}")
        return False

    async def _move(self, number: int, *, at_once: bool) -> None:
        before = self.claim.held
        ports = await self._place.open(number, at_once=at_once)
        self.claim = replace(self.claim, held=number, ports=ports)
        if before is not None:
            logger.info("rank %d is rank %d now", before, number)

    def _held_by(self, peers: Sequence[Claim], number: int) -> bool:
        """Whether a peer on this node has bound a port that is planned for `number`."""
        ports = self._place.ports_of(number)
        return any(peer.node_ip == self.claim.node_ip and peer.ports & ports for peer in peers)

    def _report_conflicts(self, peers: Sequence[Claim]) -> None:
        held = self.claim.held
        others = frozenset(peer.replica_id for peer in peers if peer.held == held)
        for other in sorted(others - self._seen):
            self.num_conflicts += 1
            yields = (
                "this one yields" if held is None or rivals(self.claim, held, peers) else "that one yields"
            )
            logger.warning("rank %s: replica %s holds this number too; %s", held, other, yields)
        self._seen = others

    def _say(self, words: str) -> None:
        """Log what is waited for, once."""
        if self.claim.held != self.claim.wanted and words != self._last_words:
            logger.warning("%s", words)
        self._last_words = words
