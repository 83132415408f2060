"""Which number a replica should hold, from what it and its peers claim: no Ray, no ports, no waiting.

Ray gives every replica a number (`wanted`) and may change it while the replica runs. But a number may still
be another's: a replica's that Ray has renumbered and that hasn't moved yet, or one's that Ray has forgotten.
So a replica holds what Ray wants once no other does; until then it holds a number beyond all that the
deployment has, which no other holds or wants.

Ray's numbers are each one replica's, so these rules end with every replica at its own: one that holds what a
peer wants leaves it, and of two that hold the same number one leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from app.deployments.messages import Claim


def next_number(own: Claim, peers: Sequence[Claim], first_surplus: int) -> int:
    """The number that the replica which claims `own` should hold now.

    Args:
        own: its claim.
        peers: those of all others that it sees.
        first_surplus: from here on no number is wanted for long.
    """
    if not rivals(own, own.wanted, peers):
        return own.wanted
    held = own.held
    is_undisputed = all(peer.wanted != held for peer in peers)
    if held is not None and held != own.wanted and is_undisputed and not rivals(own, held, peers):
        return held
    return surplus_number(peers, first_surplus)


def rivals(own: Claim, number: int, peers: Sequence[Claim]) -> list[Claim]:
    """The peers that hold `number` and come before `own`, which may hold it too.

    Who holds it comes before who doesn't; then who wants it; then the lesser replica id.
    """
    holders = [peer for peer in peers if peer.held == number]
    if own.held != number:
        return holders
    return [peer for peer in holders if _order(peer, number) < _order(own, number)]


def surplus_number(peers: Sequence[Claim], first_surplus: int) -> int:
    """The lowest number from `first_surplus` on that no peer holds or wants."""
    taken = {peer.held for peer in peers} | {peer.wanted for peer in peers}
    return next(number for number in count(first_surplus) if number not in taken)


def free_worker(own: Claim, peers: Sequence[Claim], num_workers: int) -> int:
    """Of remote ranks: for which one of `num_workers` ranks of workers to be, that no peer is for.

    Its number's, if it can. Where several start at once, which don't see each other, they differ by their
    numbers. While every one has a replica, one more stands by for one that leaves: it is for the same.
    """
    usual = own.wanted % num_workers
    taken = {peer.worker for peer in peers}
    free = [worker for worker in range(num_workers) if worker not in taken]
    return usual if usual in free or not free else free[own.wanted % len(free)]


def is_spare(own: Claim, peers: Sequence[Claim], num_workers: int) -> bool:
    """Whether a peer that comes before `own` is for the same worker's rank, while another one has none."""
    same = [peer for peer in peers if peer.worker == own.worker and peer.replica_id < own.replica_id]
    return bool(same) and len({own.worker, *(peer.worker for peer in peers)}) < num_workers


def _order(claim: Claim, number: int) -> tuple[bool, str]:
    return claim.wanted != number, claim.replica_id
