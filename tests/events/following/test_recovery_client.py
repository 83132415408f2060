"""The client of a rank's recovery socket, against the real server."""

from __future__ import annotations

from contextlib import closing

import pytest
import zmq
import zmq.asyncio

from app.errors import WireError
from app.events.batch_codec import decode_batch
from app.events.following.recovery_client import RecoveryClient
from app.events.snapshot import BLOCKS_PER_PAYLOAD
from tests.support.events.blocks import some_chains
from tests.support.events.recovery import Serve, answered
from tests.support.snapshots import parents_in


@pytest.mark.parametrize("topic", [b"kv", b"", None])
@pytest.mark.parametrize("lengths", [(), (1,), (3, 1, 1, 40), (BLOCKS_PER_PAYLOAD + 1,), (1,) * 20_000])
async def test_a_snapshot_arrives_whole_with_every_parent(
    serve: Serve, topic: bytes | None, lengths: tuple[int, ...]
) -> None:
    server = serve(topic=topic)
    blocks = some_chains(*lengths)
    server.server.take_content = answered(blocks)
    with zmq.asyncio.Context() as context, closing(RecoveryClient(context, server.address)) as client:
        snapshot = await client.snapshot()
    assert (snapshot.epoch, snapshot.seq) == ("an-epoch", 5)
    assert list(parents_in(snapshot).items()) == [(block.hash, block.parent_hash) for block in blocks]
    assert all(len(payload) < 2**20 for payload in snapshot.payloads)


@pytest.mark.parametrize("topic", [b"kv", b"", None])
async def test_the_missing_batches_are_fetched_in_either_framing(serve: Serve, topic: bytes | None) -> None:
    server = serve(topic=topic)
    with zmq.asyncio.Context() as context, closing(RecoveryClient(context, server.address)) as client:
        batches: list[tuple[int, float]] = []
        for first in (3, 8, 10):
            await client.replay(first, lambda seq, payload: batches.append((seq, decode_batch(payload).ts)))
    assert batches == [(seq, float(seq)) for first in (3, 8, 10) for seq in range(first, 10)]


async def test_an_answer_cut_short_is_not_taken_for_the_next(serve: Serve) -> None:
    server = serve()

    def refuse(seq: int, payload: bytes) -> None:
        raise WireError(f"batch {seq} is of no use")

    with zmq.asyncio.Context() as context, closing(RecoveryClient(context, server.address)) as client:
        with pytest.raises(WireError, match="batch 3 is of no use"):
            await client.replay(3, refuse)
        seqs: list[int] = []
        await client.replay(8, lambda seq, payload: seqs.append(seq))
    assert seqs == [8, 9]


async def test_a_server_that_does_not_answer_times_out() -> None:
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as silent:
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        with closing(RecoveryClient(context, f"tcp://127.0.0.1:{port}", timeout_s=0.05)) as client:
            with pytest.raises(TimeoutError):
                await client.replay(0, lambda seq, payload: None)
            with pytest.raises(TimeoutError):
                await client.snapshot(timeout_s=0.05)
