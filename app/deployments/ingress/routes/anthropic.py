"""Anthropic's API: a conversation's next message, and how many tokens a conversation has."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from app.api.anthropic.answer import MessageShape
from app.api.anthropic.request import CountRequest, MessagesRequest, parse_count, parse_messages
from app.api.error_shapes import REQUEST_ID_HEADER
from app.api.headers import named_tenant
from app.deployments.ingress.answers.anthropic import stream_message, whole_message
from app.deployments.ingress.answers.completions import MISTRAL_ID_CHARS
from app.deployments.ingress.answers.events import AnswerEvents
from app.deployments.ingress.answers.whole import json_answer
from app.deployments.ingress.openapi.describe import described
from app.deployments.ingress.service import Service
from app.text.chat_prompt import Prompt


def anthropic_routes(service: Service) -> APIRouter:
    """The routes that Anthropic's clients know."""
    router = APIRouter(prefix="/v1/messages")

    @router.post(
        "", openapi_extra=described(MessagesRequest, answer="AnthropicMessage", events="AnthropicEvent")
    )
    async def messages(request: Request) -> Response:
        """A conversation's next message."""
        return await _answer(service, request)

    @router.post("/count_tokens", openapi_extra=described(CountRequest, answer="InputTokens"))
    async def count_tokens(request: Request) -> Response:
        """How many tokens the prompt of a conversation has."""
        named_tenant(request.headers, service.config.ingress.tenant_header)
        body, prompt = await service.reader.worked_on(request, partial(_read, service))
        ignored = (*body.ignored_fields, *prompt.ignored_fields)
        return JSONResponse({"input_tokens": len(prompt.token_ids)}, headers=service.ignored.headers(ignored))

    return router


def _read(service: Service, raw: bytes) -> tuple[CountRequest, Prompt]:
    body = parse_count(raw)
    service.reader.check_model(body.model)
    return body, service.reader.chat_prompt(body)


async def _answer(service: Service, request: Request) -> Response:
    prepared = await service.read(request, parse_messages)
    body, output = prepared.body, prepared.output
    shape = MessageShape(
        request_id=prepared.generate.request_id,
        model=service.model_name if body.model is None else body.model,
        max_tokens=body.max_tokens,
        shows_thoughts=body.shows_thoughts,
        id_chars=MISTRAL_ID_CHARS if output.calls == "mistral" else None,
    )
    (text,) = service.text_streams(prepared)
    stream, report = await service.begin(prepared)
    headers = {**service.headers(prepared), **report.header()}
    if body.stream:
        request_id = request.headers.get(REQUEST_ID_HEADER)
        events = stream_message(shape, output, stream, text, request_id=request_id)
        return AnswerEvents(events, stream, headers)
    answer = whole_message(shape, output, stream, text)
    return await json_answer(answer, stream, headers, report)
