"""One rank's publisher: the address that a subscriber dials, and the publisher's state right now."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class PublisherAddress(msgspec.Struct, frozen=True):
    """Where one rank publishes, and all that a subscriber needs to follow it; ports needn't be worked out.

    Attributes:
        rank: its number.
        host: IPv6 in brackets.
        event_port: 0 where there is none.
        replay_port: answers for snapshots too; None: no replay.
        load_port: None: no load reports.
        topic: what to subscribe to for events.
        load_topic: what to subscribe to for load reports; None: there are none.
        block_size: tokens per block.
        curve_public_key: of a publisher that encrypts (40 characters of z85); None: it doesn't.
    """

    rank: int
    host: str
    event_port: int
    replay_port: int | None
    load_port: int | None
    topic: str
    load_topic: str | None
    block_size: int
    curve_public_key: str | None = None

    @property
    def event_endpoint(self) -> str:
        """What a SUB socket connects to for events."""
        return self._endpoint(self.event_port)

    @property
    def replay_endpoint(self) -> str | None:
        """What a DEALER socket connects to for replays and snapshots."""
        return None if self.replay_port is None else self._endpoint(self.replay_port)

    @property
    def load_endpoint(self) -> str | None:
        """What a SUB socket connects to for load reports."""
        return None if self.load_port is None else self._endpoint(self.load_port)

    def _endpoint(self, port: int) -> str:
        return f"tcp://{self.host}:{port}"


class PublisherState(msgspec.Struct, frozen=True):
    """What changes while a publisher lives, or with each start of it.

    Attributes:
        epoch: another one after every start of the publisher.
        last_seq: the last sequence number given out; -1 before the first.
        status: `disabled`: there is nothing to dial. Nothing is published, or not at a tcp port that the
            rank binds.
        dropped_batches: batches that have a number and were never sent.
        overflows: times that a subscriber's queue was found full.
        refused_clients: handshakes that failed at a publisher that encrypts.
    """

    epoch: str
    last_seq: int
    status: Literal["publishing", "disabled"]
    dropped_batches: int = 0
    overflows: int = 0
    refused_clients: int = 0


class PublisherInfo(msgspec.Struct, frozen=True):
    """One rank's publisher as the rank describes it."""

    address: PublisherAddress
    state: PublisherState

    @property
    def is_publishing(self) -> bool:
        """Whether there is anything to dial."""
        return self.state.status == "publishing"

    def as_json(self) -> dict[str, Any]:
        """An entry of `publishers` in `/server_info`: address and state in one flat object."""
        address, state = self.address, self.state
        return {
            "rank": address.rank,
            "host": address.host,
            "event_port": address.event_port,
            "replay_port": address.replay_port,
            "load_port": address.load_port,
            "topic": address.topic,
            "load_topic": address.load_topic,
            "block_size": address.block_size,
            "epoch": state.epoch,
            "last_seq": state.last_seq,
            "state": state.status,
            "dropped_batches": state.dropped_batches,
            "overflows": state.overflows,
            "curve_public_key": address.curve_public_key,
            "refused_clients": state.refused_clients,
        }
