"""Workers that answer what no worker should: over real sockets, byte by byte."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.engine.remote.api.http import MAX_ERROR_BYTES, MAX_EVENT_BYTES
from app.engine.remote.engine import RemoteEngine
from app.engine.remote.vllm_info import Metrics, describe
from app.engine.remote.worker import endpoint_fault
from app.errors import EngineFailedError, RequestError
from app.events.schema import encode_load
from app.generation import SamplingParams
from tests.engine.remote.conftest import NewRemote, until_available
from tests.support.deadlines import until
from tests.support.engine.live_engine import all_of, new_request, tokens
from tests.support.tcp_server import tcp_server

Json = dict[str, Any]
PROMPT = [5, 6, 7, 8]
GREEDY = SamplingParams(4, temperature=0.0)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(*token_ids: int, total: int = 1, end: str | None = None, index: int = 0, **meta: Any) -> bytes:
    counts = {"prompt_tokens": 4, "cached_tokens": 0, "completion_tokens": total}
    finish_reason = None if end is None else {"type": end}
    content = {
        "output_ids": token_ids,
        "index": index,
        "meta_info": counts | {"finish_reason": finish_reason} | meta,
    }
    return chunked(b"data: " + json.dumps(content).encode() + b"\n\n")


DONE = chunked(b"data: [DONE]\n\n")


class StrangeWorker:
    """Describes itself as SGLang's; `answer` is what it writes to each `/generate`, and then it waits.

    Attributes:
        url: where it serves.
        heads: the request lines and headers that came.
        num_open: connections that wait after an answer without an end.
    """

    def __init__(self) -> None:
        self.url = ""
        self.answer: list[bytes] = []
        self.info: Json = {}
        self.loads: Any = {}
        self.heads: list[bytes] = []
        self.num_open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection, until the client closes it."""
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if line)
            await reader.readexactly(int(fields.get(b"content-length", b"0")))
            path = head.split()[1]
            if path == b"/generate":
                await self._generate(reader, writer)
                continue
            known = {b"/server_info": self._described(), b"/v1/loads": self.loads}
            body = json.dumps(known.get(path, {})).encode()
            status = b"200 OK" if path in known else b"404 Not Found"
            writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))

    def _described(self) -> Json:
        names = {"model_path": "tiny", "served_model_name": "tiny", "page_size": 4}
        return names | {"version": "0.5", "dp_size": 1, "kv_events": None} | self.info

    async def _generate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in self.answer:
            writer.write(part)
            await writer.drain()
        if self.answer[-1] != END:
            self.num_open += 1
            try:
                await reader.readexactly(1)
            finally:
                self.num_open -= 1


@pytest.fixture
async def worker() -> AsyncIterator[StrangeWorker]:
    strange = StrangeWorker()
    async with tcp_server(strange.serve) as port:
        strange.url = f"http://127.0.0.1:{port}"
        yield strange


async def available(worker: StrangeWorker, new_remote: NewRemote) -> RemoteEngine:
    engine = new_remote(worker.url)
    await until_available(engine)
    return engine


async def ask(engine: RemoteEngine, n: int = 1) -> RequestError:
    """The error with which a request ends, after whatever chunks."""
    with pytest.raises(RequestError) as raised:
        await all_of(engine.admit(new_request("a", PROMPT, GREEDY, n=n)))
    return raised.value


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ([event(-5)], "token ids from -5 to -5"),
        ([event(10**12)], "token ids from 1000000000000 to 1000000000000"),
        ([event(1, 2, 3, 4, 5, total=5)], "5 tokens of sample 0; 4 were asked for"),
        ([event(1, index=7)], "sample 7"),
        ([event(1, end="stop"), event(end="stop")], "sample 0, which has ended"),
        ([event(1, end="stop")], "the answer ended too early"),
    ],
)
async def test_an_answer_that_was_not_asked_for_fails_the_request(
    worker: StrangeWorker, new_remote: NewRemote, events: list[bytes], fault: str
) -> None:
    engine = await available(worker, new_remote)
    worker.answer = [STREAM, *events, END]
    raised = await ask(engine, n=2)
    assert isinstance(raised, EngineFailedError)
    assert fault in str(raised)
    assert engine.load.num_running_reqs == engine.load.num_waiting_reqs == 0


@pytest.mark.parametrize(("cached", "shown"), [(-9, 0), (10**30, 4)])
async def test_counts_of_the_prompt_are_within_it(
    worker: StrangeWorker, new_remote: NewRemote, cached: int, shown: int
) -> None:
    engine = await available(worker, new_remote)
    worker.answer = [STREAM, event(1, end="stop", prompt_tokens=-4, cached_tokens=cached), END]
    (chunk,) = await all_of(engine.admit(new_request("a", PROMPT, GREEDY)))
    assert (chunk.num_prompt_tokens, chunk.num_cached_tokens) == (4, shown)
    assert b"accept-encoding: identity" in next(head for head in worker.heads if b"/generate" in head).lower()


async def test_an_answer_without_an_end_holds_its_connection_for_a_moment_only(
    worker: StrangeWorker, new_remote: NewRemote
) -> None:
    engine = await available(worker, new_remote)
    worker.answer = [STREAM, event(1, end="stop"), DONE]
    assert tokens(await all_of(engine.admit(new_request("a", PROMPT, GREEDY)))) == [1]
    assert worker.num_open == 1
    await until(lambda: worker.num_open == 0, "the connection closed")


async def test_of_an_error_that_has_no_end_its_start_is_taken(
    worker: StrangeWorker, new_remote: NewRemote
) -> None:
    engine = await available(worker, new_remote)
    head = b"HTTP/1.1 500 x\r\ncontent-length: 99999999\r\n\r\n"
    worker.answer = [head, b"out of order"]
    assert str(await ask(engine)) == f"{worker.url}/generate: 500: out of order"
    worker.answer = [head, *[b"x" * MAX_ERROR_BYTES] * 4]
    assert "500: xxx" in str(await ask(engine))


async def test_a_line_without_an_end_is_refused_however_small_its_parts_are(
    worker: StrangeWorker, new_remote: NewRemote
) -> None:
    engine = await available(worker, new_remote)
    part = chunked(b"x" * 64) * 2048
    worker.answer = [STREAM, *[part] * (MAX_EVENT_BYTES // (64 * 2048) + 1)]
    used = time.process_time()
    assert f"an event is longer than {MAX_EVENT_BYTES} bytes" in str(await ask(engine))
    # Looked through again with each part, it would take a hundred times as long.
    assert time.process_time() - used < 10


@pytest.mark.parametrize(
    "loads", [[1], {"loads": [{"num_used_tokens": 1e300}]}, {"loads": [{"num_running_reqs": 10**40}]}]
)
async def test_a_load_that_can_not_be_is_none(
    worker: StrangeWorker, new_remote: NewRemote, loads: Any
) -> None:
    worker.loads = loads
    engine = await available(worker, new_remote)
    assert engine.load.num_tokens == engine.load.num_running_reqs == 0
    encode_load(engine.load)


@pytest.mark.parametrize("key", ["event_port", "replay_port", "load_port"])
@pytest.mark.parametrize("port", [-5, 99999999, True])
async def test_a_port_that_can_not_be_is_told(
    worker: StrangeWorker, new_remote: NewRemote, key: str, port: int
) -> None:
    entry = {"rank": 0, "state": "publishing", "host": "*", "event_port": 5557, "topic": "kv"}
    worker.info = {"publishers": [entry | {key: port}]}
    engine = await available(worker, new_remote)
    expected = f"publishers of its /server_info has {key} = {port!r}; allowed: 1 to 65535"
    await until(lambda: engine.status.partial_cache == expected, lambda: engine.status)


def test_addresses_that_can_be_dialled() -> None:
    for endpoint in ("tcp://*:5557", "tcp://host:1", "tcp://[::1]:65535", "ipc:///tmp/events"):
        assert endpoint_fault(endpoint) is None, endpoint
    for endpoint in ("", "x", "tcp://", "tcp://host", "tcp://host:0", "tcp://host:65536", "tcp://:5"):
        assert endpoint_fault(endpoint) is not None, endpoint
    for endpoint in ("tcp://host:-1", "tcp://host:²", "ipc://", "udp://host:5", f"tcp://host:{'9' * 5000}"):
        assert endpoint_fault(endpoint) is not None, endpoint
    source = {"publisher": "zmq", "endpoint": "tcp://host:5557", "replay_endpoint": "nowhere"}
    worker = describe({"0": source}, ((), None), "", Metrics("", "0"), "0", "host", True)
    assert worker.publisher is None
    assert worker.no_publisher.startswith(
        "its /kv_event_sources has replay_endpoint = 'nowhere', which is no"
    )


def test_metrics_that_are_no_counts_are_left_out() -> None:
    for value in ("NaN", "+Inf", "-1", "1e300", "x"):
        assert (
            Metrics(f'vllm:num_requests_running{{engine="0"}} {value}', "0").value(
                "vllm:num_requests_running"
            )
            is None
        )
    text = f'vllm:cache_config_info{{engine="0",block_size="{"9" * 5000}"}} 1.0'
    assert Metrics(text, "0").label("vllm:cache_config_info", "block_size") is None
