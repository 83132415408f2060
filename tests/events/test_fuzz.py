"""The fuzzer's short form, what it must notice, and a flood of bad requests over a real socket."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import zmq

from app.errors import WireError
from app.events.batch_codec import encode_batch
from app.events.publishing.recovery_server import RecoveryServer
from app.events.replay import Framing, ReplayBuffer, parse_request
from app.events.schema import AllBlocksCleared, EventBatch, encode_seq
from tests.events import fuzz, fuzz_inputs

MAX_REQUEST_BYTES = 1_024


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=lambda target: target.name)
def test_no_input_crashes_hangs_or_leaks(target: fuzz.Target) -> None:
    figures = fuzz.fuzz(target, inputs=20_000, seed=0)
    assert figures.inputs == 20_000
    assert 0 < figures.accepted < figures.inputs, "neither only good inputs nor only bad ones"


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=lambda target: target.name)
def test_the_same_seed_makes_the_same_inputs(target: fuzz.Target) -> None:
    one, other = ([repr(target.make(rng)) for _ in range(50)] for rng in (Random(7), Random(7)))
    assert one == other


def target_of(read: Any) -> fuzz.Target:
    return fuzz.Target("broken", lambda: [], lambda rng: rng.randbytes(4), read, WireError)


def test_another_error_is_shown_with_the_input_that_causes_it() -> None:
    def read(given: bytes) -> None:
        if given[0] < 10:
            raise KeyError("oh")

    with pytest.raises(fuzz.FuzzError, match=r"broken, seed 3, input \d+: KeyError\('oh'\)\n0[0-9a-f]{7}$"):
        fuzz.fuzz(target_of(read), 1000, seed=3)


def test_a_long_message_is_noticed() -> None:
    def read(given: bytes) -> None:
        raise WireError("x" * 10_000)

    with pytest.raises(fuzz.FuzzError, match="message of 10000 characters"):
        fuzz.fuzz(target_of(read), 1000, seed=3)


def test_growing_memory_is_noticed() -> None:
    kept = []
    with pytest.raises(fuzz.FuzzError, match="memory grew"):
        fuzz.fuzz(target_of(lambda given: kept.append(given * 2_000)), 20_000, seed=3)


def test_a_slow_input_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MAX_MS", 0.0)
    with pytest.raises(fuzz.FuzzError, match="took"):
        fuzz.fuzz(target_of(lambda given: sum(range(1000))), 1000, seed=3)


def test_the_command_ends_with_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "TARGETS", fuzz.TARGETS[1:])
    assert fuzz.main(["--inputs", "500", "--seed", "5"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["seed"] == 5
    assert set(result["targets"]) == {target.name for target in fuzz.TARGETS}


def test_the_command_fails_with_the_input_in_hex(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(given: bytes) -> None:
        raise RuntimeError("oh")

    monkeypatch.setattr(fuzz, "TARGETS", [target_of(read)])
    assert fuzz.main(["--inputs", "500", "--seed", "3"]) == 1
    first = Random("3/broken").randbytes(4)
    assert capsys.readouterr().out == f"broken, seed 3, input 0: RuntimeError('oh')\n{first.hex()}\n"


def bad_requests(seed: int) -> Iterator[list[bytes]]:
    """What no server may answer, in frames that a socket delivers."""
    rng = Random(seed)
    while True:
        frames = fuzz_inputs.request_frames(rng)
        if not frames or max(map(len, frames)) > MAX_REQUEST_BYTES:
            continue
        try:
            parse_request(frames)
        except WireError:
            yield frames


def test_after_a_flood_of_bad_requests_a_good_one_is_answered() -> None:
    payload = encode_batch(EventBatch(0.0, [AllBlocksCleared()], 0))
    buffer = ReplayBuffer(10)
    buffer.append(0, payload)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        router = context.socket(zmq.ROUTER)
        RecoveryServer.prepare(router)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        server = RecoveryServer(router, buffer, Framing(b"kv"), lambda blocks: iter(()))
        server.start()
        try:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(f"tcp://127.0.0.1:{port}")
            for frames in itertools.islice(bad_requests(seed=0), 3_000):
                dealer.send_multipart(frames)
            dealer.send_multipart([b"", encode_seq(0)])
            for expected in ([b"", b"kv", encode_seq(0), payload], [b"", b"", b"\xff" * 8, b""]):
                assert dealer.poll(20_000), "no answer"
                assert dealer.recv_multipart() == expected
            assert server.refused == 3_000
        finally:
            server.close()
