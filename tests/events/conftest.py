"""Fixtures for the event tests: real sockets on loopback, closed after the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq.asyncio

from app.events.config import KvEventsConfig
from app.events.curve import CurveClient
from app.events.following.subscriber import RankSubscriber
from app.events.publisher_info import PublisherInfo
from tests.support.events.bare_client import BareClient, MakeBareClient
from tests.support.events.blocks import Blocks
from tests.support.events.curve_keys import Keys
from tests.support.events.ranks import LossyRank, MakeLossyRank, MakeRank, Rank
from tests.support.events.recovery import RecoveryRig, Serve
from tests.support.events.waiting import Follow
from tests.support.free_ports import find_free_ports


@pytest.fixture
def make_rank() -> Iterator[MakeRank]:
    ranks: list[Rank] = []

    def make(options: dict[str, Any] | None = None, **keys: Any) -> Rank:
        keys.setdefault("endpoint", f"tcp://127.0.0.1:{find_free_ports(6)}")
        ranks.append(Rank(KvEventsConfig(publisher="zmq", **keys), **(options or {})))
        return ranks[-1]

    yield make
    for rank in ranks:
        rank.publisher.close()


@pytest.fixture
def lossy_rank() -> Iterator[MakeLossyRank]:
    ranks: list[LossyRank] = []

    def make(**options: Any) -> LossyRank:
        ranks.append(LossyRank(**options))
        return ranks[-1]

    yield make
    for rank in ranks:
        rank.close()


@pytest.fixture
async def follow() -> AsyncIterator[Follow]:
    """Starts subscribers and closes them after the test."""
    subscribers: list[RankSubscriber] = []

    def start(
        info: PublisherInfo, rank: LossyRank | Rank | None, sink: Blocks, **options: Any
    ) -> RankSubscriber:
        options.setdefault("on_load", lambda stat: None)
        options.setdefault("on_acknowledged", lambda ids: None)
        if rank is not None:
            options.setdefault("fetch_snapshot", rank.snapshot)
        subscribers.append(RankSubscriber(info, sink, **options))
        subscribers[-1].start()
        return subscribers[-1]

    yield start
    for subscriber in subscribers:
        await subscriber.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[RecoveryRig] = []

    def make(
        count: int = 10,
        capacity: int = 1000,
        topic: bytes | None = b"kv",
        size: int = 0,
        stall_timeout_s: float = 5.0,
    ) -> RecoveryRig:
        servers.append(RecoveryRig(count, capacity, topic, size, stall_timeout_s))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
async def async_context() -> AsyncIterator[zmq.asyncio.Context]:
    with zmq.asyncio.Context() as context:
        yield context


# ---- CURVE


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def encrypted_rank(make_rank: MakeRank, keys: Keys) -> MakeRank:
    """Makes ranks with a replay and load reports, encrypted unless `curve` is None."""

    def make(**changes: Any) -> Rank:
        base = find_free_ports(12)
        replay = f"tcp://127.0.0.1:{base + 4}"
        config = {"endpoint": f"tcp://127.0.0.1:{base}", "replay_endpoint": replay, "curve": keys.config}
        return make_rank(**(config | changes))

    return make


@pytest.fixture
def bare_client() -> Iterator[MakeBareClient]:
    clients: list[BareClient] = []

    def connect(info: PublisherInfo, curve: CurveClient | None) -> BareClient:
        clients.append(BareClient(info, curve))
        return clients[-1]

    yield connect
    for each in clients:
        each.close()


# ---- how long a recovery took

_RECOVERY = "seconds until exact"


@pytest.fixture
def report_seconds(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Records how long a test's recovery took, to be printed when all have run."""

    def report(seconds: float, remark: str = "") -> None:
        record_property(_RECOVERY, f"{seconds:7.3f} s{remark and f', {remark}'}")

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        f"{value}  {report.nodeid}"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == _RECOVERY and report.when == "call"
    ]
    if lines:
        terminalreporter.section("time until the subscriber's view was the publisher's cache again")
        for line in lines:
            terminalreporter.write_line(line)
