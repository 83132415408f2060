"""The HTTP side: OpenAI's API and the descriptors, in front of the router and the ranks.

Ray pickles the class and its routes by value while the module is still being imported. So annotations here
aren't postponed (FastAPI couldn't resolve their names then), and helpers live in other modules. Every answer
carries `x-request-id`, the client's own or a new one: Ray Serve sees to it.
"""

import asyncio
import logging
import sys
import uuid
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from app.config import AppConfig
from app.deployments.answer import stream_answer, whole_answer
from app.deployments.dispatcher import Dispatcher
from app.deployments.messages import GenerateRequest
from app.deployments.openai_requests import ChatRequest, TextRequest, parse_body, pinned_rank
from app.deployments.openai_responses import AnswerShape, error_headers, error_json
from app.deployments.ranks import RankDirectory
from app.deployments.server_info import Json, model_info, server_info
from app.errors import InvalidRequestError, ModelNameError, RequestError, RequestTooLargeError
from app.model_store import resolve_model, served_name
from app.tokenizer import Tokenizer

logger = logging.getLogger("ray.serve")

UNLIMITED = sys.maxsize
"""Output tokens of a request that names no limit: the engine cuts it to what context and cache allow."""

LONG_TEXT = 20_000
"""Characters, about 10 ms of tokenizing."""

api = FastAPI(title="kvbeacon", docs_url=None, redoc_url=None, openapi_url=None)


@api.exception_handler(RequestError)
async def _request_error(request: Request, error: RequestError) -> JSONResponse:
    return JSONResponse(error_json(error), status_code=error.status, headers=error_headers(error))


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
        self._directory = RankDirectory(ranks)
        self._model_name = served_name(config.model)
        self._tokenizer = Tokenizer.from_folder(resolve_model(config.model))
        self._dispatcher = Dispatcher(
            router,
            ranks,
            block_size=config.engine.cache.block_size,
            max_retries=config.ingress.max_retries,
        )

    @api.post("/v1/chat/completions")
    async def chat_completions(self, request: Request) -> Response:
        """A conversation's next message."""
        body = parse_body(ChatRequest, await self._read(request))
        prompt = self._tokenizer.render_chat([message.flat() for message in body.messages])
        return await self._complete(request, body, await self._encode(prompt), "messages")

    @api.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        """A text's continuation."""
        body = parse_body(TextRequest, await self._read(request))
        prompt = body.prompt
        token_ids = await self._encode(prompt) if isinstance(prompt, str) else prompt
        return await self._complete(request, body, token_ids, "prompt")

    @api.get("/v1/models")
    async def models(self) -> Json:
        """What can be named in a request's `model`."""
        ranks = await self._directory.look()
        return {
            "object": "list",
            "data": [
                {
                    "id": self._model_name,
                    "object": "model",
                    "created": 0,
                    "owned_by": "kvbeacon",
                    "max_model_len": model_info(self._config, ranks)["max_model_len"],
                }
            ],
        }

    @api.get("/health")
    async def health(self) -> Response:
        """200 when some rank can take a request, else 503."""
        routable = await self._router.view.remote()
        status = {"status": "ok" if routable else "no rank can take requests", "ranks": len(routable)}
        return JSONResponse(status, status_code=200 if routable else 503)

    @api.get("/server_info")
    @api.get("/get_server_info")
    async def server_info(self) -> Json:
        """The deployment's descriptor."""
        return server_info(self._config, await self._directory.look())

    @api.get("/model_info")
    @api.get("/get_model_info")
    async def model_info(self) -> Json:
        """What is served."""
        return model_info(self._config, await self._directory.look())

    @api.get("/router/ranks")
    async def router_ranks(self) -> list[Json]:
        """What a router believes of every rank: trust, blocks, load."""
        ranks: list[Json] = await self._router.view.remote()
        return ranks

    async def _read(self, request: Request) -> bytes:
        limit = self._config.ingress.max_request_bytes
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise RequestTooLargeError(f"the body is larger than {limit} bytes")
        return bytes(body)

    async def _encode(self, text: str) -> list[int]:
        """Token ids of `text`; a long one is tokenized beside the event loop, which it would hold up."""
        if len(text) < LONG_TEXT:
            return self._tokenizer.encode(text)
        return await asyncio.to_thread(self._tokenizer.encode, text)

    async def _complete(
        self, request: Request, body: ChatRequest | TextRequest, token_ids: list[int], prompt_field: str
    ) -> Response:
        if body.model not in (None, self._model_name):
            raise ModelNameError(f"model = {body.model!r}; served here: {self._model_name!r}")
        if not token_ids:
            message = f"{prompt_field}: no tokens; at least one is needed"
            raise InvalidRequestError(message, param=prompt_field)
        shape = AnswerShape(
            kind="chat" if isinstance(body, ChatRequest) else "text",
            request_id=uuid.uuid4().hex,
            model=self._model_name,
        )
        params = body.sampling_params(body.max_output_tokens or UNLIMITED)
        text = self._tokenizer.text_stream(params.stop)
        stream = await self._dispatcher.start(
            GenerateRequest(shape.request_id, token_ids, params, body.cache_salt),
            pinned_rank(request.headers, body),
        )
        headers = {"x-dp-rank": str(stream.rank)}
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = stream_answer(shape, stream, text, with_usage=with_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        return JSONResponse(await whole_answer(shape, stream, text), headers=headers)
