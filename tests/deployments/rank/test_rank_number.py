"""Numbers of replicas that come, go, and are renumbered: whatever the order, each ends with its own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.deployments.messages import Claim
from app.deployments.rank.claims import free_worker, is_spare, next_number
from app.deployments.rank.number import RankNumber
from app.errors import EndpointInUseError
from tests.support.deadlines import until

DP_SIZE = 3
RETRY_S = 0.01


class Ports:
    """The node's ports, one for each number: a number beyond the plan always finds some."""

    def __init__(self) -> None:
        self.owner_of: dict[int, object] = {}


class Place:
    """One replica's place on the node; `foreign` programs hold ports too."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self.held: int | None = None
        self.moves: list[int] = []

    def ports_of(self, number: int) -> frozenset[int]:
        return frozenset([5000 + number])

    async def open(self, number: int, *, at_once: bool) -> frozenset[int]:
        await asyncio.sleep(0)
        port = 5000 + number
        if self._ports.owner_of.get(port, self) is not self:
            if number < DP_SIZE:
                raise EndpointInUseError(f"{port} is taken")
            port = 30_000 + number + 100 * id(self) % 1000
        self.close()
        self._ports.owner_of[port] = self
        self.held = number
        self.moves.append(number)
        return frozenset([port])

    def close(self) -> None:
        for port, owner in list(self._ports.owner_of.items()):
            if owner is self:
                del self._ports.owner_of[port]


class Cluster:
    """Ray as replicas see it: it numbers them, and lets those that run see each other.

    Attributes:
        hears: replicas that run; those that start ask and aren't asked, those that stop neither.
        has_stopping: whether Ray's status counts replicas that are being stopped.
    """

    def __init__(self) -> None:
        self.ports = Ports()
        self.hears: dict[str, RankNumber] = {}
        self.has_stopping = False
        self.answers = True
        self.num_looks = 0

    def has_looked(self, count: int) -> bool:
        """Whether all replicas together have looked at their peers just so often."""
        return self.num_looks == count

    async def looks(self, count: int = 3) -> None:
        """Wait until some replica has looked at its peers so often again."""
        last = self.num_looks + count
        await until(lambda: self.num_looks >= last, "looks at the peers")

    def new(self, replica_id: str, wanted: int, place: Place | None = None) -> tuple[RankNumber, Place]:
        place = Place(self.ports) if place is None else place
        claim = Claim(replica_id, wanted, None, "10.0.0.1")
        return RankNumber(claim, DP_SIZE, _Peers(self, replica_id), place, retry_s=RETRY_S), place

    async def run(self, replica_id: str, wanted: int) -> tuple[RankNumber, Place]:
        """A replica from its constructor until Ray lets others see it."""
        number, place = self.new(replica_id, wanted)
        await number.take()
        number.start()
        self.hears[replica_id] = number
        number.called()
        return number, place


class _Peers:
    def __init__(self, cluster: Cluster, replica_id: str) -> None:
        self._cluster = cluster
        self._replica_id = replica_id

    async def exchange(self, claim: Claim) -> list[Claim] | None:
        await asyncio.sleep(0)
        self._cluster.num_looks += 1
        if not self._cluster.answers:
            return None
        others = [each for name, each in self._cluster.hears.items() if name != self._replica_id]
        return [each.hear(claim) for each in others]

    async def may_hold_ports(self) -> bool:
        return self._cluster.has_stopping


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


async def until_settled(*numbers: RankNumber) -> None:
    await until(lambda: all(each.held == each.claim.wanted for each in numbers), "every number is Ray's")


async def test_a_first_start_takes_rays_numbers(cluster: Cluster) -> None:
    for rank in range(DP_SIZE):
        number, place = await cluster.run(f"r{rank}", rank)
        assert (number.held, place.moves) == (rank, [rank])
        assert number.claim.ports == {5000 + rank}


async def test_a_port_that_another_program_holds_ends_a_first_start(cluster: Cluster) -> None:
    cluster.ports.owner_of[5001] = "foreign"
    await cluster.run("r0", 0)
    number, _ = cluster.new("r1", 1)
    with pytest.raises(EndpointInUseError, match="5001 is taken"):
        await number.take()


async def test_a_number_that_a_living_peer_holds_is_waited_for(cluster: Cluster) -> None:
    old, _ = await cluster.run("old", 1)
    new, place = await cluster.run("new", 1)
    assert new.held == DP_SIZE
    old.stop()
    del cluster.hears["old"]  # its ports are still open: it is being stopped
    await cluster.looks()
    assert (new.held, place.moves) == (DP_SIZE, [DP_SIZE])
    for port in list(cluster.ports.owner_of):
        if port == 5001:
            del cluster.ports.owner_of[port]
    await until_settled(new)
    assert place.moves == [DP_SIZE, 1]


async def test_ports_of_a_replica_that_is_being_stopped_are_no_fault(cluster: Cluster) -> None:
    cluster.ports.owner_of[5001] = "a replica that no other sees"
    cluster.has_stopping = True
    number, _ = await cluster.run("new", 1)
    assert number.held == DP_SIZE
    del cluster.ports.owner_of[5001]
    await until_settled(number)


async def test_ports_of_a_peer_under_another_number_are_no_fault(cluster: Cluster) -> None:
    """As where a redeploy moves the base ports onto those of ranks that still run."""
    old, place = await cluster.run("old", 0)
    place.close()
    cluster.ports.owner_of[5001] = place
    old.claim = replace(old.claim, ports=frozenset([5001]))
    number, _ = await cluster.run("new", 1)
    assert number.held == DP_SIZE


async def test_what_ray_renumbers_moves_and_what_it_does_not_asks_no_other(cluster: Cluster) -> None:
    numbers = [(await cluster.run(f"r{rank}", rank))[0] for rank in (0, 3)]
    await until_settled(*numbers)
    await until(lambda: cluster.has_looked(4), "each looks twice at its start")
    numbers[1].want(1)
    await until_settled(*numbers)
    assert [each.held for each in numbers] == [0, 1]
    await until(lambda: cluster.has_looked(6), "and twice for a move")
    for rank, expected in ((2, 8), (4, 10), (5, 12)):
        await cluster.run(f"r{rank}", rank)
        await until(partial(cluster.has_looked, expected), "only the new one looks")
    assert [each.num_conflicts for each in numbers] == [0, 0]


async def test_numbers_that_are_exchanged_go_round(cluster: Cluster) -> None:
    numbers = [(await cluster.run(f"r{rank}", rank))[0] for rank in range(3)]
    for rank, number in enumerate(numbers):
        number.want((rank + 1) % 3)
    await until_settled(*numbers)


async def test_of_two_that_hold_a_number_one_yields_and_both_count_it(cluster: Cluster) -> None:
    """Two that start at once see neither each other nor, on two nodes, each other's ports."""
    stays, _ = cluster.new("a", 1)
    yields, _ = cluster.new("b", 1, Place(Ports()))
    await stays.take()
    await yields.take()
    assert stays.held == yields.held == 1
    cluster.hears |= {"a": stays, "b": yields}
    stays.start()
    yields.start()
    stays.called()
    yields.called()
    await until(lambda: yields.held == DP_SIZE, "the greater id yields")
    assert stays.held == 1
    await until(lambda: (stays.num_conflicts, yields.num_conflicts) == (1, 1), "both count it")


async def test_while_peers_do_not_answer_a_surplus_rank_stays(cluster: Cluster) -> None:
    old, _ = await cluster.run("old", 1)
    new, _ = await cluster.run("new", 1)
    cluster.answers = False
    old.want(0)
    await cluster.looks()
    assert (old.held, new.held) == (1, DP_SIZE)
    cluster.answers = True
    await until_settled(old, new)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 2**32))
def test_whatever_the_order_every_number_ends_as_ray_says(data: st.DataObject, seed: int) -> None:
    asyncio.run(_any_order(data.draw(st.lists(st.integers(0, 4), max_size=25)), random.Random(seed)))


async def _any_order(steps: Sequence[int], chance: random.Random) -> None:
    """Start, stop, renumber, hide and show replicas; in the end Ray numbers those that are left from 0."""
    cluster = Cluster()
    cluster.has_stopping = True
    alive: dict[str, tuple[RankNumber, Place]] = {}
    wanted: dict[str, int] = {}
    for count, step in enumerate(steps):
        names = sorted(alive)
        if step == 0:
            name = f"{chance.randrange(10**6):06}-{count}"
            wanted[name] = min(set(range(len(wanted) + 1)) - set(wanted.values()))
            alive[name] = await cluster.run(name, wanted[name])
        elif names:
            name = chance.choice(names)
            number, place = alive[name]
            if step == 1:
                number.stop()
                place.close()
                del alive[name], wanted[name]
                cluster.hears.pop(name, None)
            elif step == 2:
                cluster.hears.pop(name, None)
            elif step == 3:
                cluster.hears[name] = number
            else:
                _renumber(alive, wanted, chance)
        await asyncio.sleep(chance.choice([0, 0, RETRY_S / 10]))
    _renumber(alive, wanted, chance)
    cluster.hears = {name: number for name, (number, _) in alive.items()}
    await until_settled(*(number for number, _ in alive.values()))
    assert sorted(place.held or 0 for _, place in alive.values()) == list(range(len(alive)))
    for number, place in alive.values():
        number.stop()
        assert number.held == place.held


def _renumber(
    alive: dict[str, tuple[RankNumber, Place]], wanted: dict[str, int], chance: random.Random
) -> None:
    names = sorted(alive)
    numbers = list(range(len(names)))
    chance.shuffle(numbers)
    for name, number in zip(names, numbers, strict=True):
        wanted[name] = number
        alive[name][0].want(number)


CLAIMS = st.builds(
    Claim,
    replica_id=st.uuids().map(str),
    wanted=st.integers(0, 5),
    held=st.none() | st.integers(0, 8),
    node_ip=st.just("10.0.0.1"),
)


@given(CLAIMS, st.lists(CLAIMS, max_size=6))
def test_a_number_is_rays_or_ones_own_or_free(own: Claim, peers: list[Claim]) -> None:
    number = next_number(own, peers, DP_SIZE)
    if number not in (own.wanted, own.held):
        assert number >= DP_SIZE
        assert all(number not in (peer.held, peer.wanted) for peer in peers)
    if number != own.held:
        assert all(peer.held != number for peer in peers), "no peer is pushed aside"


@pytest.mark.parametrize(
    ("wanted", "taken", "worker"),
    [
        (1, [], 1),
        (1, [0], 1),
        (3, [0], 2),  # its number's is taken: of the others one by its number
        (4, [1], 0),
        (2, [1, 2], 0),
        (4, [0, 1, 2], 1),  # one more than there are: it is for the same as another that leaves
    ],
)
def test_workers_by_url_have_one_replica_each(wanted: int, taken: list[int], worker: int) -> None:
    own = Claim("own", wanted, None, "10.0.0.1")
    peers = [Claim(f"r{each}", each, each, "10.0.0.1", worker=each) for each in taken]
    assert free_worker(own, peers, 3) == worker


@pytest.mark.parametrize(
    ("workers", "spare"),
    [
        ({"a": 0, "b": 1, "c": 2}, set()),
        ({"a": 0, "b": 1, "c": 1}, {"c"}),
        ({"a": 0, "b": 0, "c": 0}, {"b", "c"}),
        ({"a": 0, "b": 1, "c": 2, "d": 1}, set()),  # it stands by: no rank is without
        ({"a": 0, "b": 2, "c": 2}, {"c"}),
    ],
)
def test_of_two_for_one_worker_one_goes_where_another_has_none(
    workers: dict[str, int], spare: set[str]
) -> None:
    claims = [Claim(name, rank, rank, "10.0.0.1", worker=w) for rank, (name, w) in enumerate(workers.items())]
    others = {own: [peer for peer in claims if peer is not own] for own in claims}
    assert {own.replica_id for own, peers in others.items() if is_spare(own, peers, 3)} == spare
