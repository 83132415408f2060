"""Follows every rank's KV events, knowing nothing but the server's URL.

    python examples/follow_events.py http://127.0.0.1:8000 [NAME.key_secret]

This is all that an outside router has to do: read `kv_events` from `/server_info`, subscribe at every rank,
decode, and ask for a replay of what it missed, beginning with what was published before it came; where the
ranks encrypt, with a key that they allow. Each line printed is one batch: rank, sequence number, blocks
stored and removed.
"""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

import httpx
import zmq
from zmq.auth import load_certificate

from app.errors import WireError
from app.events.batch_codec import decode_batch
from app.events.descriptor import read_descriptor
from app.events.publisher_info import PublisherAddress
from app.events.replay import ReplayRequest, parse_reply, request_frames
from app.events.schema import BlockRemoved, BlockStored, split_message

REPLAY_TIMEOUT_MS = 1000


class Follower:
    """One rank's batches, in order."""

    def __init__(self, publisher: PublisherAddress, key_file: str | None) -> None:
        self.publisher = publisher
        self.key_file = key_file
        self.next_seq = 0
        self.socket = self._open(zmq.SUB, publisher.event_endpoint)
        self.socket.subscribe(publisher.topic)

    def receive(self) -> None:
        """Print the next batch, after those that are missing before it."""
        _topic, seq, payload = split_message(self.socket.recv_multipart())
        if seq < self.next_seq:  # the publisher was restarted
            self.next_seq = 0
        if seq > self.next_seq:
            self._replay(until=seq)
        if seq > self.next_seq:
            print(f"rank {self.publisher.rank}  seq {self.next_seq}..{seq - 1} are lost", flush=True)
        self._print(seq, payload)

    def _replay(self, until: int) -> None:
        if self.publisher.replay_endpoint is None:
            return
        with self._open(zmq.DEALER, self.publisher.replay_endpoint) as socket:
            socket.send_multipart(request_frames(ReplayRequest(self.next_seq)))
            while socket.poll(REPLAY_TIMEOUT_MS):
                reply = parse_reply(socket.recv_multipart())
                if reply.seq is None or reply.seq >= until:
                    return
                self._print(reply.seq, reply.payload)

    def _print(self, seq: int, payload: bytes) -> None:
        self.next_seq = seq + 1
        events = decode_batch(payload).events
        stored = sum(len(event.block_hashes) for event in events if isinstance(event, BlockStored))
        removed = sum(len(event.block_hashes) for event in events if isinstance(event, BlockRemoved))
        print(f"rank {self.publisher.rank}  seq {seq:6d}  +{stored} -{removed} blocks", flush=True)

    def _open(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, 1)
        if self.publisher.curve_public_key is not None:
            assert self.key_file is not None, "`main` has checked it"
            socket.curve_publickey, socket.curve_secretkey = load_certificate(self.key_file)
            socket.curve_serverkey = self.publisher.curve_public_key.encode()
        socket.connect(endpoint)
        return socket


def main(url: str = "http://127.0.0.1:8000", key_file: str | None = None) -> None:
    try:
        kv_events = httpx.get(f"{url}/server_info").json()["kv_events"]
        publishers = read_descriptor(kv_events, urlsplit(url).hostname or "")
    except WireError as error:
        sys.exit(f"{url}: {error}")
    if not publishers:
        sys.exit(f"{url} describes no KV events; its log says why")
    if key_file is None and publishers[0].curve_public_key is not None:
        sys.exit(f"{url} encrypts: name the secret key file of a client that it allows")
    followers = {each.socket: each for each in (Follower(publisher, key_file) for publisher in publishers)}
    poller = zmq.Poller()
    for socket in followers:
        poller.register(socket, zmq.POLLIN)
    while True:
        for socket, _ in poller.poll():
            followers[socket].receive()


if __name__ == "__main__":
    main(*sys.argv[1:])
