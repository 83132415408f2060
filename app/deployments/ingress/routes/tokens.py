"""Texts to tokens and back, and two routes by which clients and monitors find out what they talk to."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app import __version__
from app.api.request_model import RequestBody
from app.api.tokens import (
    DetokenizeBody,
    TokenizeChat,
    TokenizeText,
    detokenize_answer,
    parse_detokenize,
    parse_tokenize,
    tokenize_answer,
    tokenizer_info_answer,
)
from app.deployments.ingress.openapi.describe import described
from app.deployments.ingress.service import Service
from app.deployments.messages import Json

METRICS_ELSEWHERE = (
    "Ray has the metrics of this deployment, on a port of every node; Prometheus finds them by "
    "/tmp/ray/prom_metrics_service_discovery.json on the head node"
)


def tokens_routes(service: Service) -> APIRouter:
    """The routes that need no rank."""
    router = APIRouter()

    @router.post("/tokenize", openapi_extra=described(TokenizeText, TokenizeChat, answer="Tokens"))
    async def tokenize(request: Request) -> Response:
        """The tokens of a text, or of the prompt that a chat would have."""
        return await _answer(service, request, _tokenized)

    @router.post("/detokenize", openapi_extra=described(DetokenizeBody, answer="Text"))
    async def detokenize(request: Request) -> Response:
        """The text of tokens."""
        return await _answer(service, request, _detokenized)

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> Json:
        """What a client needs to write prompts itself: special tokens and the chat template."""
        return tokenizer_info_answer(service.tokenizer.special_tokens, service.tokenizer.chat_template_source)

    @router.get("/version", openapi_extra=described(answer="Version"))
    async def version() -> Json:
        """This server's own version."""
        return {"version": __version__}

    @router.get("/metrics")
    async def metrics() -> Response:
        """404: Ray has the metrics, on every node."""
        raise HTTPException(404, METRICS_ELSEWHERE)

    return router


async def _answer(
    service: Service, request: Request, work: Callable[[Service, bytes], tuple[RequestBody, Json]]
) -> Response:
    """What `work` makes of the body. Its JSON may be long too, and is written where `work` is done."""

    def whole(raw: bytes) -> tuple[RequestBody, bytes]:
        body, answer = work(service, raw)
        return body, msgspec.json.encode(answer)

    body, answer = await service.reader.worked_on(request, whole)
    return Response(
        answer, media_type="application/json", headers=dict(service.ignored.headers(body.ignored_fields))
    )


def _tokenized(service: Service, raw: bytes) -> tuple[RequestBody, Json]:
    body = parse_tokenize(raw)
    service.reader.check_model(body.model)
    tokenizer = service.tokenizer
    is_list = isinstance(body, TokenizeText) and isinstance(body.prompt, list)
    if isinstance(body, TokenizeChat):
        prompts = [service.reader.chat_prompt(body).token_ids]
    else:
        texts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        prompts = [tokenizer.encode(text, body.add_special_tokens) for text in texts]
    answer = tokenize_answer(
        prompts,
        is_list=is_list,
        max_model_len=service.max_model_len,
        entries_of=tokenizer.entries if body.return_token_strs else None,
    )
    return body, answer


def _detokenized(service: Service, raw: bytes) -> tuple[RequestBody, Json]:
    body = parse_detokenize(raw)
    service.reader.check_model(body.model)
    texts = [service.tokenizer.decode(each, body.skip_special_tokens) for each in body.token_lists]
    return body, detokenize_answer(texts, is_list=body.is_list)
