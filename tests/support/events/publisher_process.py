"""A publisher in a process of its own, to be killed: `publisher_process.py BASE_PORT REPLAY_PORT SEED`.

It changes a naive cache again and again until a line comes on stdin, and then stays as it is.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from concurrent.futures import Future

from app.events.config import KvEventsConfig
from app.events.publishing.publisher import EventPublisher
from app.events.schema import BlockRemoved, BlockStored
from app.events.snapshot import CacheContent, CachedBlock


def main(port: int, replay_port: int, seed: int) -> None:
    config = KvEventsConfig(
        publisher="zmq",
        endpoint=f"tcp://127.0.0.1:{port}",
        replay_endpoint=f"tcp://127.0.0.1:{replay_port}",
    )
    publisher = EventPublisher(config, dp_rank=0, dp_size=1, block_size=1)
    held: list[int] = []
    changing = threading.Lock()

    def take_content() -> Future[CacheContent]:
        future: Future[CacheContent] = Future()
        with changing:
            future.set_result(publisher.content([CachedBlock(block_hash, None) for block_hash in held]))
        return future

    publisher.start()
    publisher.serve_snapshots(take_content)
    print("started", flush=True)
    stopped = threading.Event()

    def wait_for_line() -> None:
        sys.stdin.readline()
        stopped.set()

    threading.Thread(target=wait_for_line, daemon=True).start()
    rng = random.Random(seed)
    while not stopped.is_set():
        with changing:
            held.append(rng.getrandbits(62))
            publisher.publish([BlockStored([held[-1]], None, [0], 1, medium="GPU")])
            if len(held) > 500:
                publisher.publish([BlockRemoved([held.pop(rng.randrange(len(held)))], "GPU")])
        time.sleep(0.0005)
    print(publisher.last_seq, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
