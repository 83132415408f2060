"""Follows every rank's KV events, knowing nothing but the server's URL.

    python examples/follow_events.py http://127.0.0.1:8000 [NAME.key_secret] [--api-key-file FILE]

This is all that an outside router has to do: read `/server_info`, subscribe at every rank, decode, and ask
for a replay of what it missed, beginning with what was published before it came; where the ranks encrypt,
with a key that they allow. Each line printed is one batch: rank, sequence number, blocks stored and removed.

`publishers` in `/server_info` has the host and the ports of each rank. Where a server has only SGLang's
`kv_events`, that is one host for all ranks: those on other nodes aren't seen, and the example says so.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx
import zmq
from zmq.auth import load_certificate

from app.errors import ConfigError, WireError
from app.events.batch_codec import decode_batch
from app.events.descriptor import read_publishers
from app.events.publisher_info import PublisherAddress
from app.events.replay import ReplayRequest, parse_reply, request_frames
from app.events.schema import BlockRemoved, BlockStored, split_message
from app.settings.key_text import read_key

REPLAY_TIMEOUT_MS = 1000
POLL_MS = 100
QUIET_S = 1.0
"""After this long without a batch the replay is asked for more: the last ones may have been missed."""
Keys = tuple[bytes, bytes | None]


class Follower:
    """One rank's batches, in order."""

    def __init__(self, publisher: PublisherAddress, keys: Keys | None) -> None:
        self.publisher = publisher
        self.keys = keys
        self.next_seq = 0
        self.replayed: dict[int, int] = {}
        """Batches that came by the last replay → their hashes: they may come again, as live ones."""
        self.quiet_until = 0.0
        self.socket = self._open(zmq.SUB, publisher.event_endpoint)
        self.socket.subscribe(publisher.topic)

    def receive(self) -> None:
        """Print the next batch, after those that are missing before it."""
        _topic, seq, payload = split_message(self.socket.recv_multipart())
        self.quiet_until = time.monotonic() + QUIET_S
        if seq < self.next_seq:
            if self.replayed.get(seq) == hash(payload):
                return
            self.next_seq = 0  # the publisher was restarted
        if seq > self.next_seq:
            self.replay(until=seq)
        self._print(seq, payload)

    def replay(self, until: int | None = None) -> None:
        """Print what the rank still has from the next batch on, up to the one before `until`."""
        self.quiet_until = time.monotonic() + QUIET_S
        if self.publisher.replay_endpoint is None:
            return
        with self._open(zmq.DEALER, self.publisher.replay_endpoint) as socket:
            socket.send_multipart(request_frames(ReplayRequest(self.next_seq)))
            replayed: dict[int, int] = {}
            while socket.poll(REPLAY_TIMEOUT_MS):
                reply = parse_reply(socket.recv_multipart())
                if reply.seq is None or (until is not None and reply.seq >= until):
                    break
                self._print(reply.seq, reply.payload)
                replayed[reply.seq] = hash(reply.payload)
            self.replayed = replayed or self.replayed

    def _print(self, seq: int, payload: bytes) -> None:
        if seq > self.next_seq:
            print(f"rank {self.publisher.rank}  seq {self.next_seq}..{seq - 1} are lost", flush=True)
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
            assert self.keys is not None, "`main` has checked it"
            socket.curve_publickey, socket.curve_secretkey = self.keys
            socket.curve_serverkey = self.publisher.curve_public_key.encode()
        socket.connect(endpoint)
        return socket


def publishers_at(url: str, headers: dict[str, str] | None = None) -> list[PublisherAddress]:
    """Every rank's publisher that the server at `url` describes; says which ranks it doesn't see."""
    info = server_info(url, headers)
    try:
        described = read_publishers(info, urlsplit(url).hostname or "")
    except WireError as error:
        fail(f"{url}: {error}")
    for rank, state in described.not_publishing.items():
        warn(f"rank {rank} isn't followed: {state}")
    if not described.to_dial:
        fail(f"{url} describes no KV events; its log says why")
    if not described.hosts_are_known:
        host = described.to_dial[0].host
        warn(f"{url} has no list of publishers: all ranks are expected at {host}, others would not be seen")
    return list(described.to_dial)


def server_info(url: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """What `/server_info` answers, an object with the key `kv_events` or `publishers`."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        fail(f"{url!r} is no URL of a server; one is http://127.0.0.1:8000")
    at = f"{url.rstrip('/')}/server_info"
    try:
        response = httpx.get(at, timeout=10, headers=headers or {}).raise_for_status()
        info = response.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"{at}: {error}")
    except ValueError:
        fail(f"{at} answers with something that isn't JSON")
    if not isinstance(info, dict) or not ("kv_events" in info or "publishers" in info):
        fail(f"{at} has no kv_events: the server doesn't know this contract")
    return info


def warn(message: str) -> None:
    """Say this beside what is printed."""
    print(message, file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """End with this message."""
    sys.exit(message)


def main(url: str, key_file: str | None, api_key_file: Path | None) -> None:
    try:
        key = None if api_key_file is None else read_key("--api-key-file", api_key_file)
    except ConfigError as error:
        fail(str(error))
    publishers = publishers_at(url, {} if key is None else {"Authorization": f"Bearer {key}"})
    if key_file is None and any(each.curve_public_key is not None for each in publishers):
        fail(f"{url} encrypts: name the secret key file of a client that it allows")
    try:
        keys = None if key_file is None else load_certificate(key_file)
    except (OSError, ValueError) as error:
        fail(f"{key_file}: {error}")
    followers = {each.socket: each for each in (Follower(publisher, keys) for publisher in publishers)}
    poller = zmq.Poller()
    for socket in followers:
        poller.register(socket, zmq.POLLIN)
    while True:
        for socket, _ in poller.poll(POLL_MS):
            followers[socket].receive()
        for follower in followers.values():
            if time.monotonic() > follower.quiet_until:
                follower.replay()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Follow every rank's KV events.")
    parser.add_argument("url")
    parser.add_argument("key_file", nargs="?", metavar="NAME.key_secret", help="where the ranks encrypt")
    parser.add_argument("--api-key-file", type=Path, help="where /server_info needs a key")
    given = parser.parse_args()
    main(given.url, given.key_file, given.api_key_file)
