"""The HTTP side: OpenAI's API and the descriptors, in front of the router and the ranks.

Ray pickles the class and its routes by value while the module is still being imported. So annotations here
aren't postponed (FastAPI couldn't resolve their names then), and helpers live in other modules. Every answer
carries `x-request-id`, the client's own or a new one: Ray Serve sees to it.
"""

import asyncio
import logging
import sys
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app import hashing
from app.api.headers import named_session
from app.api.openai.requests import (
    ChatRequest,
    TextRequest,
    is_chat,
    parse_body,
    pinned_rank,
    shown,
)
from app.api.openai.responses import AnswerShape, error_headers, error_json
from app.api.tenants import named_tenant
from app.config import AppConfig
from app.deployments.ingress.answer import AnswerEvents, whole_answer
from app.deployments.ingress.dispatcher import Dispatcher
from app.deployments.ingress.receipts import audit_answer, decisions_answer, named_request
from app.deployments.ingress.server_info import Json, model_info, server_info
from app.deployments.rank_directory import RankDirectory
from app.deployments.router_client import RouterClient
from app.errors import (
    InvalidRequestError,
    ModelNameError,
    PromptTooLongError,
    RequestError,
    RequestTooLargeError,
)
from app.events.endpoints import KvEvents
from app.generation import GenerateRequest
from app.models.context import context_length, resolve_max_model_len
from app.models.store import resolve_model, served_name
from app.text.tokenizer import Tokenizer

logger = logging.getLogger("ray.serve")

UNLIMITED = sys.maxsize
"""Output tokens of a request that names no limit: the engine cuts it to what context and cache allow."""

POLL_TIMEOUT_S = 0.75
"""Seconds that a rank gets to describe itself; SGLang's router waits 2 s in all for `/server_info`."""

AUDIT_TIMEOUT_S = 60.0
"""Seconds that the routers get to compare all ranks; one that doesn't answer takes 5 of them."""

LONG_BODY = 20_000
"""Bytes of a body that take some 10 ms to parse and tokenize."""

Dispatched = TypeVar("Dispatched")
Prepared = tuple[ChatRequest | TextRequest, list[int]]
"""A request's body, and its prompt's token ids."""

api = FastAPI(title="kvbeacon", docs_url=None, redoc_url=None, openapi_url=None)


@api.exception_handler(RequestError)
async def _request_error(request: Request, error: RequestError) -> JSONResponse:
    return JSONResponse(error_json(error), status_code=error.status, headers=error_headers(error))


@api.exception_handler(ClientDisconnect)
async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nginx's number for it; nobody reads this


@api.exception_handler(HTTPException)
async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    answer = error_json(InvalidRequestError(message, code="not_found" if error.status_code == 404 else None))
    return JSONResponse(answer, status_code=error.status_code, headers=error.headers)


@api.exception_handler(Exception)
async def _internal_error(request: Request, error: Exception) -> JSONResponse:
    logger.exception("request %s failed", request.headers.get("x-request-id"), exc_info=error)
    failure = {"message": "internal error; the server's log has more", "type": "server_error"}
    answer = {"error": {**failure, "param": None, "code": "internal_error"}}
    return JSONResponse(answer, status_code=500)


@serve.ingress(api)
class Ingress:
    """Validates, renders the chat template, tokenizes, and streams from the rank that the router chose.

    Args:
        config: the whole deployment's.
        events: what its `kv_events_config` asks for.
        router: handle of the `Router` deployment.
        ranks: handle of the `DPRank` deployment.
    """

    def __init__(
        self,
        config: AppConfig,
        events: KvEvents,
        router: DeploymentHandle[Any],
        ranks: DeploymentHandle[Any],
    ) -> None:
        self._config = config
        self._events = events
        self._routers = RouterClient(router)
        self._directory = RankDirectory(ranks, timeout_s=POLL_TIMEOUT_S)
        self._model_name = served_name(config.model)
        model_dir = resolve_model(config.model)
        self._tokenizer = Tokenizer.from_folder(model_dir)
        self._max_model_len = resolve_max_model_len(config.model.max_model_len, context_length(model_dir))
        self._dispatcher = Dispatcher(
            router,
            ranks,
            block_size=config.engine.cache.block_size,
            max_retries=config.ingress.max_retries,
        )

    @api.post("/v1/chat/completions")
    async def chat_completions(self, request: Request) -> Response:
        """A conversation's next message."""
        return await self._complete(request, self._prepare_chat)

    @api.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        """A text's continuation."""
        return await self._complete(request, self._prepare_text)

    @api.get("/v1/models")
    async def models(self) -> Json:
        """What can be named in a request's `model`."""
        return {"object": "list", "data": [self._model]}

    @api.get("/v1/models/{name:path}")
    async def model(self, name: str) -> Json:
        """The one model, by its name."""
        self._check_model_name(name)
        return self._model

    @api.get("/health")
    async def health(self) -> Response:
        """200 when some rank can take a request, else 503."""
        routable = await self._routers.ask_one("view")
        status = {"status": "ok" if routable else "no rank can take requests", "ranks": len(routable)}
        return JSONResponse(status, status_code=200 if routable else 503)

    @api.get("/server_info")
    @api.get("/get_server_info")
    async def server_info(self) -> Json:
        """The deployment's descriptor."""
        return server_info(self._config, self._events, self._max_model_len, await self._directory.poll())

    @api.get("/model_info")
    @api.get("/get_model_info")
    async def model_info(self) -> Json:
        """What is served."""
        return model_info(self._config, self._max_model_len)

    @api.get("/router/ranks")
    async def router_ranks(self) -> list[Json]:
        """What a router believes of every rank: trust, blocks, load."""
        ranks: list[Json] = await self._routers.ask_one("view")
        return ranks

    @api.get("/router/stats")
    async def router_stats(self) -> list[Json]:
        """How good every router's decisions have been since its start."""
        return await self._routers.ask_all("stats")

    @api.get("/router/audit")
    async def router_audit(self) -> Response:
        """Every router's index beside every rank's cache; 503 when some rank couldn't be compared."""
        answer, status = audit_answer(await self._routers.ask_all("audit", timeout_s=AUDIT_TIMEOUT_S))
        return JSONResponse(answer, status_code=status)

    @api.get("/router/decisions/{answer_id}")
    async def router_decisions(self, answer_id: str) -> Json:
        """Which rank a request went to, why, and what came of it."""
        request_id = named_request(answer_id)
        return decisions_answer(request_id, await self._routers.ask_all("decisions", request_id))

    @api.post("/router/explain")
    async def router_explain(self, request: Request) -> Json:
        """Which rank a completion or a chat completion with this body would go to now, and why."""
        body, generate, pinned, session_id = await self._read_prompt(request, self._prepare_either)
        return await self._dispatched(body, self._dispatcher.explain(generate, pinned, session_id))

    async def _read(self, request: Request) -> bytes:
        limit = self._config.ingress.max_request_bytes
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise RequestTooLargeError(f"the body is larger than {limit} bytes")
        return bytes(body)

    async def _prepare(self, prepare: Callable[[bytes], Prepared], raw: bytes) -> Prepared:
        """The body and its token ids; a long one is worked on beside the event loop."""
        return prepare(raw) if len(raw) < LONG_BODY else await asyncio.to_thread(prepare, raw)

    def _prepare_chat(self, raw: bytes) -> Prepared:
        body = parse_body(ChatRequest, raw)
        prompt = self._tokenizer.render_chat([message.flat() for message in body.messages])
        return body, self._tokenizer.encode(prompt)

    def _prepare_text(self, raw: bytes) -> Prepared:
        body = parse_body(TextRequest, raw)
        if not isinstance(body.prompt, str):
            return body, body.prompt
        # A chat template writes its own beginning of the text; here the tokenizer puts it there.
        return body, self._tokenizer.encode(body.prompt, add_special_tokens=True)

    def _prepare_either(self, raw: bytes) -> Prepared:
        return self._prepare_chat(raw) if is_chat(raw) else self._prepare_text(raw)

    @property
    def _model(self) -> Json:
        """The model in OpenAI's shape."""
        return {
            "id": self._model_name,
            "object": "model",
            "created": 0,
            "owned_by": "kvbeacon",
            "max_model_len": self._max_model_len,
        }

    def _check_model_name(self, name: str) -> None:
        if name != self._model_name:
            raise ModelNameError(f"model = {shown(name)}; served here: {self._model_name!r}")

    def _check_prompt(self, body: ChatRequest | TextRequest, token_ids: list[int]) -> None:
        if body.model is not None:
            self._check_model_name(body.model)
        if not token_ids:
            message = f"{body.prompt_field}: no tokens; at least one is needed"
            raise InvalidRequestError(message, param=body.prompt_field)
        if len(token_ids) > self._max_model_len:
            # The ranks would only say the same, after all of it was hashed.
            message = f"the prompt has {len(token_ids)} tokens; the context is {self._max_model_len}"
            raise PromptTooLongError(message, param=body.prompt_field)

    async def _read_prompt(
        self, request: Request, prepare: Callable[[bytes], Prepared]
    ) -> tuple[ChatRequest | TextRequest, GenerateRequest, int | None, str | None]:
        """The one way in for prompts: the body, what a rank is to do, and the rank and the session named."""
        # Before the body is read: nothing is done for nobody.
        tenant = named_tenant(request.headers, self._config.ingress.tenant_header)
        session_id = named_session(request.headers)
        body, token_ids = await self._prepare(prepare, await self._read(request))
        self._check_prompt(body, token_ids)
        generate = GenerateRequest(
            uuid.uuid4().hex,
            token_ids,
            body.sampling_params(body.max_output_tokens or UNLIMITED),
            cache_salt=body.cache_salt if tenant is None else hashing.tenant_salt(tenant, body.cache_salt),
            n=body.n,
            priority=body.priority,
        )
        return body, generate, pinned_rank(request.headers, body, self._config.dp_size), session_id

    async def _dispatched(self, body: ChatRequest | TextRequest, answer: Awaitable[Dispatched]) -> Dispatched:
        """The dispatcher's answer; that no rank takes so long a prompt is said of the body's field."""
        try:
            return await answer
        except PromptTooLongError as error:
            error.param = body.prompt_field
            raise

    async def _complete(self, request: Request, prepare: Callable[[bytes], Prepared]) -> Response:
        body, generate, pinned, session_id = await self._read_prompt(request, prepare)
        params = generate.params
        shape = AnswerShape(
            kind="chat" if isinstance(body, ChatRequest) else "text",
            request_id=generate.request_id,
            model=self._model_name,
            spell=None if params.logprobs is None else self._tokenizer.spell,
        )
        texts = [self._tokenizer.text_stream(params.stop, params.min_tokens) for _ in range(body.n)]
        stream = await self._dispatched(body, self._dispatcher.start(generate, pinned, session_id))
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return AnswerEvents(shape, stream, *texts, with_usage=with_usage)
        answer = await whole_answer(shape, stream, *texts)
        return JSONResponse(answer, headers={"x-dp-rank": str(stream.rank)})
