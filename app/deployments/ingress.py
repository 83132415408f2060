"""The HTTP side: OpenAI's API and the descriptors, in front of the router and the ranks.

Ray pickles the class and its routes by value while the module is still being imported. So annotations here
aren't postponed (FastAPI couldn't resolve their names then), and helpers live in other modules. Every answer
carries `x-request-id`, the client's own or a new one: Ray Serve sees to it.
"""

import asyncio
import logging
import sys
import uuid
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app import hashing
from app.config import AppConfig
from app.deployments.answer import AnswerEvents, whole_answer
from app.deployments.dispatcher import ROUTER_TIMEOUT_S, Dispatcher
from app.deployments.headers import named_session
from app.deployments.messages import GenerateRequest
from app.deployments.openai_requests import ChatRequest, TextRequest, parse_body, pinned_rank, shown
from app.deployments.openai_responses import AnswerShape, error_headers, error_json
from app.deployments.ranks import RankDirectory
from app.deployments.server_info import Json, model_info, server_info
from app.deployments.tenants import named_tenant
from app.engine.architecture import read_architecture
from app.engine.limits import resolve_max_model_len
from app.errors import (
    InvalidRequestError,
    ModelNameError,
    NoRankError,
    PromptTooLongError,
    RequestError,
    RequestTooLargeError,
)
from app.model_store import resolve_model, served_name
from app.tokenizer import Tokenizer

logger = logging.getLogger("ray.serve")

UNLIMITED = sys.maxsize
"""Output tokens of a request that names no limit: the engine cuts it to what context and cache allow."""

LOOK_TIMEOUT_S = 0.75
"""Seconds that a rank gets to describe itself; SGLang's router waits 2 s in all for `/server_info`."""

LONG_BODY = 20_000
"""Bytes of a body that take some 10 ms to parse and tokenize."""

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
        router: handle of the `Router` deployment.
        ranks: handle of the `DPRank` deployment.
    """

    def __init__(
        self, config: AppConfig, router: DeploymentHandle[Any], ranks: DeploymentHandle[Any]
    ) -> None:
        self._config = config
        self._router = router
        self._directory = RankDirectory(ranks, timeout_s=LOOK_TIMEOUT_S)
        self._model_name = served_name(config.model)
        model_dir = resolve_model(config.model)
        self._tokenizer = Tokenizer.from_folder(model_dir)
        self._max_model_len = resolve_max_model_len(
            config.model.max_model_len, read_architecture(model_dir).max_position_embeddings
        )
        self._dispatcher = Dispatcher(
            router,
            ranks,
            block_size=config.engine.cache.block_size,
            max_retries=config.ingress.max_retries,
        )

    @api.post("/v1/chat/completions")
    async def chat_completions(self, request: Request) -> Response:
        """A conversation's next message."""
        return await self._complete(request, self._prepare_chat, "messages")

    @api.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        """A text's continuation."""
        return await self._complete(request, self._prepare_text, "prompt")

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
        routable = await self._ask_router()
        status = {"status": "ok" if routable else "no rank can take requests", "ranks": len(routable)}
        return JSONResponse(status, status_code=200 if routable else 503)

    @api.get("/server_info")
    @api.get("/get_server_info")
    async def server_info(self) -> Json:
        """The deployment's descriptor."""
        return server_info(self._config, self._max_model_len, await self._directory.look())

    @api.get("/model_info")
    @api.get("/get_model_info")
    async def model_info(self) -> Json:
        """What is served."""
        return model_info(self._config, self._max_model_len)

    @api.get("/router/ranks")
    async def router_ranks(self) -> list[Json]:
        """What a router believes of every rank: trust, blocks, load."""
        return await self._ask_router()

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

    async def _ask_router(self) -> list[Json]:
        """What a router believes of the ranks. Raises `NoRankError` when none answers."""
        try:
            async with asyncio.timeout(ROUTER_TIMEOUT_S):
                ranks: list[Json] = await self._router.view.remote()
        except (TimeoutError, RayActorError, DeploymentUnavailableError):
            raise NoRankError("no router answers") from None
        return ranks

    def _check_prompt(self, body: ChatRequest | TextRequest, token_ids: list[int], prompt_field: str) -> None:
        if body.model is not None:
            self._check_model_name(body.model)
        if not token_ids:
            message = f"{prompt_field}: no tokens; at least one is needed"
            raise InvalidRequestError(message, param=prompt_field)
        if len(token_ids) > self._max_model_len:
            # The ranks would only say the same, after all of it was hashed.
            message = f"the prompt has {len(token_ids)} tokens; the context is {self._max_model_len}"
            raise PromptTooLongError(message, param=prompt_field)

    async def _complete(
        self, request: Request, prepare: Callable[[bytes], Prepared], prompt_field: str
    ) -> Response:
        """The one way in for prompts."""
        # Before the body is read: nothing is done for nobody.
        tenant = named_tenant(request.headers, self._config.ingress.tenant_header)
        session_id = named_session(request.headers)
        body, token_ids = await self._prepare(prepare, await self._read(request))
        self._check_prompt(body, token_ids, prompt_field)
        cache_salt = body.cache_salt if tenant is None else hashing.tenant_salt(tenant, body.cache_salt)
        params = body.sampling_params(body.max_output_tokens or UNLIMITED)
        shape = AnswerShape(
            kind="chat" if isinstance(body, ChatRequest) else "text",
            request_id=uuid.uuid4().hex,
            model=self._model_name,
            spell=None if params.logprobs is None else self._tokenizer.spell,
        )
        texts = [self._tokenizer.text_stream(params.stop, params.min_tokens) for _ in range(body.n)]
        generate = GenerateRequest(
            shape.request_id, token_ids, params, cache_salt, n=body.n, priority=body.priority
        )
        try:
            stream = await self._dispatcher.start(generate, pinned_rank(request.headers, body), session_id)
        except PromptTooLongError as error:
            error.param = prompt_field
            raise
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return AnswerEvents(shape, stream, *texts, with_usage=with_usage)
        answer = await whole_answer(shape, stream, *texts)
        return JSONResponse(answer, headers={"x-dp-rank": str(stream.rank)})
