"""What is asked and answered on a rank's recovery socket, and the batches that are kept for it.

    DEALER ──▶ ROUTER   "" | first seq                 replay: every buffered batch from there on
                        "" | "snapshot" | ""           the whole cache content
    DEALER ◀── ROUTER   "" | topic | seq | payload     each batch; a snapshot's all have its seq
                        "" | ""    | ff*8 | epoch      the end; the epoch of a snapshot, empty after a replay

The framing of replies is that of vLLM and SGLang 0.5.23; without a topic the second frame is left out, as in
SGLang 0.5.13. Both of them know replays only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.errors import WireError
from app.events.schema import SEQ_BYTES, decode_seq, encode_seq

SNAPSHOT = b"snapshot"
END_SEQ = b"\xff" * SEQ_BYTES


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """Wants every buffered batch from number `first` on."""

    first: int


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """Wants the whole cache content."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One message of an answer; `seq` is None at the end, whose `payload` is the epoch of a snapshot."""

    seq: int | None
    payload: bytes


def parse_request(frames: Sequence[bytes]) -> ReplayRequest | SnapshotRequest:
    """The request in `frames`, the peer's identity left out.

    Raises:
        WireError: any other shape.
    """
    if len(frames) == 2 and not frames[0] and len(frames[1]) == SEQ_BYTES:
        return ReplayRequest(decode_seq(frames[1]))
    if len(frames) == 3 and (frames[0], frames[1], frames[2]) == (b"", SNAPSHOT, b""):
        return SnapshotRequest()
    sizes = [len(frame) for frame in frames[:4]]  # a peer may send any number of them
    raise WireError(
        f"request of {len(frames)} frames, the first of {sizes} bytes; "
        'allowed are "", seq and "", "snapshot", ""'
    )


def request_frames(request: ReplayRequest | SnapshotRequest) -> list[bytes]:
    """The frames of a request."""
    if isinstance(request, ReplayRequest):
        return [b"", encode_seq(request.first)]
    return [b"", SNAPSHOT, b""]


@dataclass(frozen=True, slots=True)
class Framing:
    """How replies are framed: with the topic, or without where it is None."""

    topic: bytes | None

    def batch(self, seq: int, payload: bytes) -> list[bytes]:
        """The frames of one batch."""
        prefix = [b""] if self.topic is None else [b"", self.topic]
        return [*prefix, encode_seq(seq), payload]

    def end(self, epoch: str = "") -> list[bytes]:
        """The frames of the end."""
        prefix = [b""] if self.topic is None else [b"", b""]
        return [*prefix, END_SEQ, epoch.encode()]


def parse_reply(frames: Sequence[bytes]) -> Reply:
    """One message of an answer in either framing.

    Raises:
        WireError: any other shape.
    """
    if len(frames) not in (3, 4) or frames[0] != b"":
        raise WireError(f'reply of {len(frames)} frames; allowed are "", [topic], seq, payload')
    seq, payload = frames[-2:]
    return Reply(None if seq == END_SEQ else decode_seq(seq), payload)


class ReplayBuffer:
    """The last `capacity` batches. Written by the publisher's thread, read by the recovery server's.

    Every access is a single operation on a dict, which needs no lock.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._payloads: dict[int, bytes] = {}
        self._first = 0
        self._last = -1

    def append(self, seq: int, payload: bytes) -> None:
        """Keep a batch, whose number is above all others'; the oldest one leaves when the buffer is full."""
        if not self._payloads:
            self._first = seq
        self._payloads[seq] = payload
        self._last = seq
        while len(self._payloads) > self._capacity:
            self._payloads.pop(self._first, None)  # numbers of dropped batches are missing
            self._first += 1

    def since(self, seq: int) -> Iterator[tuple[int, bytes]]:
        """Buffered `(seq, payload)` from `seq` to what is now the last, in order.

        Lazy: a batch that leaves the buffer before its turn is left out.
        """
        return self._between(max(seq, self._first), self._last)

    def _between(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        for seq in range(first, last + 1):
            payload = self._payloads.get(seq)
            if payload is not None:
                yield seq, payload
