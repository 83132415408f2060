"""A worker by URL: a real rank behind a real HTTP server that speaks SGLang's native API, or vLLM's.

The answers' shapes are SGLang 0.5's and vLLM 0.32's, as their sources have them. Everything but the rank's
engine runs on the test's event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from app.deployments.messages import Refusal
from app.engine.torch.engine import Engine
from app.generation import GenerateRequest, SamplingParams, TokenChunk
from tests.support.deadlines import until
from tests.support.engine.live_rank import LiveRank
from tests.support.free_ports import find_free_ports

Json = dict[str, Any]


@dataclass
class Behaviour:
    """How the worker answers; tests change it while it runs.

    Attributes:
        incremental: each native event has only what is new.
        status: of every `/generate`, with `error` as its body; None: it generates.
        break_after: events of an answer after which the connection breaks; None: it doesn't.
        flush_status: of `/flush_cache`; None: it isn't served.
        info: changes to `/server_info`.
    """

    incremental: bool = False
    status: int | None = None
    error: Json = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    break_after: int | None = None
    flush_status: int | None = None
    has_scale_out: bool = True
    info: Json = field(default_factory=dict)


class LiveWorker:
    """One worker of one rank, at `url` from `start` to `stop`.

    Attributes:
        bodies: what was posted for generation, and with which headers.
        aborted: requests whose client left before the end.
    """

    def __init__(self, rank: LiveRank, *, port: int | None = None, is_vllm: bool = False) -> None:
        self.rank = rank
        self.behaviour = Behaviour()
        self.bodies: list[Json] = []
        self.headers: list[dict[str, str]] = []
        self.aborted: list[str] = []
        self.num_flushes = 0
        self.port = port or find_free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        routes = _vllm_routes(self) if is_vllm else _native_routes(self)
        app = Starlette(routes=[Route(path, serve, methods=methods) for path, serve, methods in routes])
        config = uvicorn.Config(app, port=self.port, log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)

    async def start(self) -> None:
        """Return once it answers."""
        self._task = asyncio.create_task(self._server.serve())
        await until(lambda: self._server.started, "the worker's HTTP server started")

    async def stop(self) -> None:
        """End HTTP, breaking what streams, and the rank."""
        self._server.should_exit = self._server.force_exit = True
        with suppress(asyncio.CancelledError):
            await self._task
        await asyncio.to_thread(self.rank.stop)

    # ---- what both speak

    async def chunks(self, request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        """The rank's own answer."""
        finished = False
        try:
            async for message in self.rank.core.generate(request):
                assert not isinstance(message, Refusal), message
                yield message
            finished = True
        finally:
            if not finished:
                self.aborted.append(request.request_id)

    async def take_body(self, request: Request) -> Json:
        body: Json = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        return body

    def refused(self) -> Response | None:
        """What is answered instead of generating."""
        behaviour = self.behaviour
        if behaviour.status is None:
            return None
        return JSONResponse(behaviour.error, behaviour.status, headers=behaviour.headers)

    def streamed(self, events: AsyncIterator[Json]) -> Response:
        """Server-sent events, which may break off."""

        async def lines() -> AsyncIterator[str]:
            count = 0
            async for event in events:
                if count == self.behaviour.break_after:
                    raise ConnectionError("breaks off, as a test wants it")
                yield f"data: {json.dumps(event)}\n\n"
                count += 1
            yield "data: [DONE]\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def flush(self, request: Request) -> Response:
        """`/flush_cache` and `/reset_prefix_cache`."""
        status = self.behaviour.flush_status
        if status is None:
            return PlainTextResponse("Not Found", 404)
        self.num_flushes += 1
        if status == 200:
            await self.rank.call(Engine.reset_cache)
        return JSONResponse({"success": status == 200}, status)


# ---- SGLang's


Routes = list[tuple[str, Callable[[Request], Any], list[str]]]


def _native_routes(worker: LiveWorker) -> Routes:
    async def server_info(request: Request) -> Response:
        info = worker.rank.publisher.info("127.0.0.1").as_json()
        kv_events = {
            "publisher": "zmq",
            "endpoint_host": "*",
            "endpoint_port_base": info["event_port"],
            "replay_endpoint_port_base": info["replay_port"],
            "topic": info["topic"],
            "block_size": info["block_size"],
            "dp_size": 1,
            "load_endpoint_port_base": info["load_port"],
            "load_topic": info["load_topic"],
        }
        answer = {
            "model_path": "/models/tiny",
            "served_model_name": "tiny",
            "page_size": info["block_size"],
            "version": "0.5.23",
            "kv_events": kv_events,
            "internal_states": [{"memory_usage": {}}],
            "max_total_num_tokens": 256,
        }
        return JSONResponse(answer | worker.behaviour.info)

    async def generate(request: Request) -> Response:
        body = await worker.take_body(request)
        return worker.refused() or worker.streamed(_native_events(worker, body))

    return [
        ("/server_info", server_info, ["GET"]),
        ("/generate", generate, ["POST"]),
        ("/flush_cache", worker.flush, ["POST"]),
    ]


async def _native_events(worker: LiveWorker, body: Json) -> AsyncIterator[Json]:
    given = body["sampling_params"]
    logprobs = body.get("top_logprobs_num") if body.get("return_logprob") else None
    params = SamplingParams(
        given["max_new_tokens"],
        temperature=given["temperature"],
        ignore_eos=given["ignore_eos"],
        logprobs=logprobs,
    )
    request = GenerateRequest(
        body["rid"], body["input_ids"], params, cache_salt=body.get("cache_salt"), n=given.get("n", 1)
    )
    outputs: dict[int, list[int]] = {}
    own: dict[int, list[Any]] = {}
    likeliest: dict[int, list[Any]] = {}
    async for chunk in worker.chunks(request):
        index, reason = chunk.index, chunk.finish_reason
        output = outputs.setdefault(index, [])
        output += chunk.token_ids
        meta: Json = {
            "id": body["rid"],
            "prompt_tokens": chunk.num_prompt_tokens,
            "completion_tokens": len(output),
            "cached_tokens": chunk.num_cached_tokens,
            "finish_reason": None if reason is None else {"type": reason, "length": len(output)},
        }
        if chunk.logprobs is not None:
            for each, token_id in zip(chunk.logprobs, chunk.token_ids, strict=True):
                own.setdefault(index, []).append([each.logprob, token_id, None])
                tops = [[logprob, top, None] for top, logprob in each.likeliest]
                likeliest.setdefault(index, []).append(tops)
            meta |= {"output_token_logprobs": own[index], "output_top_logprobs": likeliest[index]}
        shown = chunk.token_ids if worker.behaviour.incremental else list(output)
        yield {"text": "", "output_ids": shown, "meta_info": meta, "index": index}


# ---- vLLM's


def _vllm_routes(worker: LiveWorker) -> Routes:
    async def sources(request: Request) -> Response:
        info = worker.rank.publisher.info("127.0.0.1").as_json()
        source = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{info['event_port']}",
            "replay_endpoint": f"tcp://*:{info['replay_port']}",
            "topic": info["topic"],
        }
        return JSONResponse({"0": source})

    async def models(request: Request) -> Response:
        return JSONResponse({"data": [{"id": "tiny", "root": "/models/tiny", "max_model_len": 64}]})

    async def version(request: Request) -> Response:
        return JSONResponse({"version": "0.32.0"})

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(
            'vllm:cache_config_info{block_size="4",engine="0",num_gpu_blocks="64"} 1.0\n'
            'vllm:num_requests_running{engine="0",model_name="tiny"} 2.0\n'
            'vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0\n'
            'vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25\n'
        )

    async def generate(request: Request) -> Response:
        if not worker.behaviour.has_scale_out:
            return JSONResponse({"detail": "Not Found"}, 404)
        if request.method == "GET":
            return JSONResponse({"detail": "Method Not Allowed"}, 405)
        body = await worker.take_body(request)
        return worker.refused() or worker.streamed(_vllm_events(worker, body))

    return [
        ("/kv_event_sources", sources, ["GET"]),
        ("/v1/models", models, ["GET"]),
        ("/version", version, ["GET"]),
        ("/metrics", metrics, ["GET"]),
        ("/inference/v1/generate", generate, ["GET", "POST"]),
        ("/reset_prefix_cache", worker.flush, ["POST"]),
    ]


async def _vllm_events(worker: LiveWorker, body: Json) -> AsyncIterator[Json]:
    given = body["sampling_params"]
    params = SamplingParams(
        given["max_tokens"],
        temperature=given["temperature"],
        ignore_eos=given["ignore_eos"],
        logprobs=given.get("logprobs"),
    )
    request = GenerateRequest(
        body["request_id"], body["token_ids"], params, cache_salt=body.get("cache_salt"), n=given["n"]
    )
    cached = 0
    async for chunk in worker.chunks(request):
        cached = chunk.num_cached_tokens
        content = None
        if chunk.logprobs is not None:
            content = [
                {
                    "token_id": token_id,
                    "logprob": each.logprob,
                    "top_logprobs": [
                        {"token_id": top, "logprob": logprob} for top, logprob in each.likeliest
                    ],
                }
                for each, token_id in zip(chunk.logprobs, chunk.token_ids, strict=True)
            ]
        choice = {
            "index": chunk.index,
            "token_ids": chunk.token_ids,
            "finish_reason": chunk.finish_reason,
            "stop_reason": None,
            "logprobs": None if content is None else {"content": content},
        }
        yield {"request_id": "x", "choices": [choice], "output_mode": "tokens"}
    usage = {"prompt_tokens": len(body["token_ids"]), "prompt_tokens_details": {"cached_tokens": cached}}
    yield {"request_id": "x", "choices": [], "usage": usage}
