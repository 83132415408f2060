"""Which ranks there are, and what is known of each: membership, events and load.

    descriptions of the ranks ──▶ Tracker ──▶ one FollowedRank per rank ──▶ RoutingCore: index, load,
    (polled from them)                                                      reservations, membership

A rank is named by its number but identified by its replica and that replica's publisher. When either changes,
everything known under that number is of another replica, so blocks, load and reservations are dropped in the
same step, before the new subscriber has connected.

A replica may take another number: then all that is known of it moves there, by a snapshot. Two may hold one
number for a moment: the one that is followed already stays, and the other is shown and counted.

A rank that says that it can serve nothing now stays a member and is followed on, but takes no requests until
it says otherwise. So does one that doesn't answer, as long as Ray has it: `FollowedRank` knows when that is
suspect. One that Ray no longer has takes no new requests and may be finishing its last ones: it gets none
from then on, and is dropped when the next poll finds the same. For Ray leaves a replica out for a moment
too, while it changes its settings or its number, and its blocks are still there afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from app.events.curve import KeyPair
from app.events.following.sync_status import SyncStatus
from app.events.snapshot import CacheSnapshot
from app.routing.core import RoutingCore
from app.routing.tracking.description import Absence, RankDescription
from app.routing.tracking.followed_rank import FollowedRank
from app.routing.tracking.standing import USABLE, Standing, State

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 1_000
"""Replicas that aren't followed, and of which it is known why not: the last so many."""
SnapshotFetcher = Callable[[str], Awaitable[CacheSnapshot]]
"""Asks the replica with this id for its cache's content."""


@dataclass(frozen=True)
class Member:
    """One rank as this router knows it.

    Attributes:
        unavailable: why it can take no requests; None if it can.
        model: `model.path` of its configuration.
        other_replicas: that say that they are this rank too, and aren't followed.
    """

    rank: int
    replica_id: str
    status: SyncStatus
    num_blocks: int
    unavailable: str | None
    model: str
    other_replicas: Sequence[str] = ()


@dataclass(slots=True)
class TrackerCounters:
    """What a tracker has seen since its start.

    Attributes:
        renumbered: times that a replica which was followed came under another number.
        conflicts: times that a second replica began to claim a number that was followed.
    """

    renumbered: int = 0
    conflicts: int = 0


class Tracker:
    """Keeps `core` at what the ranks say. All on one event loop.

    Attributes:
        counters: what was seen of ranks' numbers.

    Args:
        core: written to: a rank joins, is followed, and is dropped.
        fetch_snapshot: asks a replica for its cache's content; may fail, and is then tried again.
        curve_keys: the router's own, for ranks that encrypt.
        stall_timeout_s: a rank that doesn't answer for so long gets no requests.
    """

    def __init__(
        self,
        core: RoutingCore,
        fetch_snapshot: SnapshotFetcher,
        curve_keys: KeyPair | None = None,
        *,
        stall_timeout_s: float,
    ) -> None:
        self.counters = TrackerCounters()
        self._core = core
        self._fetch_snapshot = fetch_snapshot
        self._curve_keys = curve_keys
        self._stall_timeout_s = stall_timeout_s
        self._max_prompt_tokens: int | None = None
        self._followed: dict[int, FollowedRank] = {}
        self._failed: set[str] = set()
        """Replicas that failed since the last poll, by id: their numbers may be others by now."""
        self._others: dict[str, RankDescription] = {}
        """By replica id, those whose number is that of a replica that is followed."""
        self._absent: dict[str, Absence] = {}
        """Replicas that aren't followed, by id, and why not; the last that was heard of comes last."""
        self._unknown: set[str] = set()
        """Replicas that an ingress asked for and that no poll has told anything of."""
        self._closing: set[asyncio.Task[None]] = set()

    def max_prompt_tokens(self) -> int | None:
        """The longest prompt that some rank ever takes; None while no rank takes any."""
        return self._max_prompt_tokens

    def replica_id(self, rank: int) -> str:
        """The replica that answers for `rank`, which must be routable."""
        return self._followed[rank].description.replica_id

    def ranks_of(self, replicas: Mapping[str, int]) -> frozenset[int]:
        """The numbers that replicas with these ids have, or had if no other replica has them now.

        Args:
            replicas: by id the number that each had once.
        """
        if not replicas:
            return frozenset()
        followed = self._followed.items()
        have = {rank for rank, each in followed if each.description.replica_id in replicas}
        return frozenset(have | {rank for rank in replicas.values() if rank not in self._followed})

    def routes_to(self, rank: int, replica_id: str) -> bool:
        """Whether `rank` is this replica and can take requests."""
        return self._follows(rank, replica_id) and rank in self._core.membership.routable

    def standing(self, rank: int, replica_id: str) -> Standing:
        """How this replica stands, which was `rank` when a request was sent to it and may be another now.

        One of which this router knows nothing yet, having just started, counts as usable until it was asked:
        the next poll does so. See `take_unknown`.
        """
        followed, other = self._find(rank, replica_id), self._others.get(replica_id)
        absence = self._absent.get(replica_id)
        if absence is not None and (absence.kind == "gone" or (followed is None and other is None)):
            state: State = "gone" if absence.kind == "gone" else "unavailable"
            return Standing(state, absence.reason or "it doesn't answer")
        if followed is not None:
            unavailable = followed.unavailable
        elif other is not None:
            unavailable = other.unavailable
        else:
            self._unknown.add(replica_id)
            unavailable = None
        return USABLE if unavailable is None else Standing("unavailable", unavailable)

    def take_unknown(self) -> set[str]:
        """Replicas whose standing was asked for and isn't known: the next poll should ask them by name."""
        unknown, self._unknown = self._unknown, set()
        return unknown

    def followed(self, rank: int) -> FollowedRank | None:
        """The replica that is followed under this number now."""
        return self._followed.get(rank)

    def members(self) -> list[Member]:
        """Every rank that is there, by number, whether or not it can take requests."""
        return [
            Member(
                rank,
                followed.description.replica_id,
                followed.status,
                self._core.index.num_blocks_of(rank),
                followed.unavailable,
                followed.description.model,
                sorted(name for name, each in self._others.items() if each.rank == rank),
            )
            for rank, followed in sorted(self._followed.items())
        ]

    async def update(
        self, descriptions: Sequence[RankDescription], absent: Mapping[str, Absence] | None = None
    ) -> None:
        """Take over one poll of all ranks: what each said, or why it said nothing, by replica id.

        Where two replicas claim a rank, the one already followed keeps it until it stops claiming.
        A replica that failed since the last poll is not believed in this one, which may be older than the
        failure, when it says that it can take requests; if it still does at the next, it is back.
        """
        failed, self._failed = self._failed, set()
        believed = [
            each for each in descriptions if each.unavailable is not None or each.replica_id not in failed
        ]
        self._drop_renumbered(believed)
        described = self._one_per_rank(believed)
        self._take_others(believed, described)
        answered = {each.replica_id for each in descriptions}
        for rank in self._followed.keys() - described.keys():
            replica_id = self._followed[rank].description.replica_id
            if replica_id not in answered:
                # A poll asks by name only those that may still be there: of others the last word stands.
                last_known = self._absent.get(replica_id, Absence("silent"))
                self._miss(rank, (absent or {}).get(replica_id, last_known))
        for description in described.values():
            self._update_rank(description)
        self._remember(absent or {}, answered - failed)
        self._update_limit()
        if self._closing:
            await asyncio.wait(self._closing)

    def mark_failed(self, rank: int, replica_id: str) -> None:
        """This replica was seen dead: drop it now, unless another has already taken its place.

        One that can take no requests gets none anyway: polls tell whether it is dead.
        """
        followed = self._find(rank, replica_id)
        if followed is None:
            return
        rank = followed.description.rank
        self._failed.add(replica_id)
        if rank in self._core.membership.routable:
            self._drop(rank, "reported dead")
            self._absent[replica_id] = Absence("failed", "a request failed there")

    async def close(self) -> None:
        """Stop following; nothing is known of any rank afterwards."""
        for rank in list(self._followed):
            self._drop(rank, "router closes", log_level=logging.INFO)
        if self._closing:
            await asyncio.wait(self._closing)

    def _drop_renumbered(self, descriptions: Sequence[RankDescription]) -> None:
        """Of a replica that has another number now nothing is true under the last one."""
        rank_of = {each.replica_id: each.rank for each in descriptions}
        for rank, followed in list(self._followed.items()):
            now = rank_of.get(followed.description.replica_id, rank)
            if now != rank:
                self.counters.renumbered += 1
                self._drop(rank, f"it is rank {now} now", log_level=logging.INFO)

    def _take_others(
        self, descriptions: Sequence[RankDescription], described: Mapping[int, RankDescription]
    ) -> None:
        """Remember, log and count the replicas whose number another has."""
        before = {(replica_id, each.rank) for replica_id, each in self._others.items()}
        self._others = {each.replica_id: each for each in descriptions if each is not described[each.rank]}
        for replica_id, each in self._others.items():
            if (replica_id, each.rank) not in before:
                self.counters.conflicts += 1
                logger.warning(
                    "rank %d: replica %s claims it too; %s keeps it until it stops claiming",
                    each.rank,
                    replica_id,
                    described[each.rank].replica_id,
                )

    def _follows(self, rank: int, replica_id: str) -> bool:
        followed = self._followed.get(rank)
        return followed is not None and followed.description.replica_id == replica_id

    def _one_per_rank(self, descriptions: Sequence[RankDescription]) -> dict[int, RankDescription]:
        chosen: dict[int, RankDescription] = {}
        for description in descriptions:
            is_followed = self._follows(description.rank, description.replica_id)
            if is_followed or description.rank not in chosen:
                chosen[description.rank] = description
        return chosen

    def _find(self, rank: int, replica_id: str) -> FollowedRank | None:
        """This replica, which may have another number by now."""
        if self._follows(rank, replica_id):
            return self._followed[rank]
        others = self._followed.values()
        return next((each for each in others if each.description.replica_id == replica_id), None)

    def _miss(self, rank: int, absence: Absence) -> None:
        followed = self._followed[rank]
        before = self._absent.get(followed.description.replica_id)
        is_last = not self._core.membership.routable.keys() - {rank}
        was_gone = before is not None and before.kind == "gone"
        # Without any other, requests that wait should know at once: they may have one started.
        if absence.kind == "gone" and (was_gone or is_last):
            self._drop(rank, absence.reason)
        else:
            followed.miss(absence, self._stall_timeout_s, is_last=is_last)

    def _remember(self, absent: Mapping[str, Absence], answered: set[str]) -> None:
        """Keep why replicas that aren't followed didn't answer; of those that did, forget it."""
        for replica_id in answered:
            self._absent.pop(replica_id, None)
        for replica_id, absence in absent.items():
            self._absent.pop(replica_id, None)
            self._absent[replica_id] = absence
        for replica_id in list(self._absent)[: max(0, len(self._absent) - MAX_REMEMBERED)]:
            del self._absent[replica_id]

    def _update_rank(self, description: RankDescription) -> None:
        followed = self._followed.get(description.rank)
        if followed is not None and followed.is_same(description):
            followed.update(description)
            return
        if followed is not None:
            self._drop(description.rank, f"replaced by {description.replica_id}")
        self._follow(description)

    def _follow(self, description: RankDescription) -> None:
        logger.info("rank %d: following %s", description.rank, description.replica_id)
        self._core.join(description.rank)
        self._core.load.report(description.rank, description.load)
        self._followed[description.rank] = FollowedRank(
            description,
            self._core,
            partial(self._fetch_snapshot, description.replica_id),
            self._curve_keys,
        )

    def _drop(self, rank: int, reason: str, *, log_level: int = logging.WARNING) -> None:
        followed = self._followed.pop(rank)
        logger.log(log_level, "rank %d: dropping %s (%s)", rank, followed.description.replica_id, reason)
        self._core.drop(rank)
        self._update_limit()
        closing = followed.detach()
        if closing is not None:
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _update_limit(self) -> None:
        # Of unavailable ranks too: a prompt that only they could take isn't too long. But when there are no
        # others, that is what a client should read, and a rank that has never been up may not know its limit.
        limits = [each.description.max_prompt_tokens for each in self._followed.values()]
        self._max_prompt_tokens = max(limits) if self._core.membership.routable else None
