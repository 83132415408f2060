"""Follows every rank's KV events, knowing nothing but the server's URL.

    python examples/follow_events.py http://127.0.0.1:8000 [NAME.key_secret]

This is all that an outside router has to do: read `kv_events` from `/server_info`, subscribe to `base + rank`
for every rank, decode; where the ranks encrypt, with a key that they allow. Each line printed is one batch:
rank, sequence number, blocks stored and removed.
"""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

import httpx
import msgspec
import zmq
from zmq.auth import load_certificate

WILDCARDS = ("*", "0.0.0.0", "[::]")


def main(url: str = "http://127.0.0.1:8000", key_file: str | None = None) -> None:
    descriptor = httpx.get(f"{url}/server_info").json()["kv_events"]
    if descriptor is None:
        sys.exit(f"{url} describes no KV events; its log says why")
    host = descriptor["endpoint_host"]
    if host in WILDCARDS:
        host = urlsplit(url).hostname
    subscriber = zmq.Context.instance().socket(zmq.SUB)
    subscriber.subscribe(descriptor["topic"])
    if "curve_public_key" in descriptor:
        if key_file is None:
            sys.exit(f"{url} encrypts: name the secret key file of a client that it allows")
        subscriber.curve_publickey, subscriber.curve_secretkey = load_certificate(key_file)
        subscriber.curve_serverkey = descriptor["curve_public_key"].encode()
    for rank in range(descriptor["dp_size"]):
        subscriber.connect(f"tcp://{host}:{descriptor['endpoint_port_base'] + rank}")
    while True:
        _topic, seq, payload = subscriber.recv_multipart()
        _timestamp, events, rank = msgspec.msgpack.decode(payload)
        stored = sum(len(event["block_hashes"]) for event in events if event["type"] == "BlockStored")
        removed = sum(len(event["block_hashes"]) for event in events if event["type"] == "BlockRemoved")
        print(f"rank {rank}  seq {int.from_bytes(seq, 'big'):6d}  +{stored} -{removed} blocks", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
