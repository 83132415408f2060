"""OpenAI's API: chats and texts."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from app.api.openai.requests import ChatRequest, TextRequest, parse_chat, parse_text
from app.api.openai.responses import AnswerShape
from app.deployments.ingress.answers.completions import stream_answer, whole_answer
from app.deployments.ingress.answers.events import AnswerEvents
from app.deployments.ingress.service import Service


def openai_routes(service: Service) -> APIRouter:
    """The routes whose answers are completions."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """A conversation's next message."""
        return await _complete(service, request, parse_chat)

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        """A text's continuation."""
        return await _complete(service, request, parse_text)

    return router


async def _complete(
    service: Service, request: Request, parse: Callable[[bytes], ChatRequest | TextRequest]
) -> Response:
    prepared = await service.read(request, parse)
    body, params = prepared.body, prepared.generate.params
    shape = AnswerShape(
        kind=body.kind,
        request_id=prepared.generate.request_id,
        model=service.model_name,
        spell=None if params.logprobs is None else service.tokenizer.spell,
        prompt_token_ids=prepared.generate.prompt_token_ids if body.return_token_ids else None,
        output=prepared.output,
        shows_thoughts=not isinstance(body, ChatRequest) or body.include_reasoning,
    )
    texts = service.text_streams(prepared)
    stream, report = await service.begin(prepared)
    headers = {**service.headers(prepared), **report.header()}
    if body.stream:
        events = stream_answer(shape, stream, *texts, usage=body.usage_in_stream, missed=report.details)
        return AnswerEvents(events, stream, headers)
    answer = await whole_answer(shape, stream, *texts, missed=report.details)
    # Again: what came while the answer was computed is in this header too.
    headers |= report.header()
    return JSONResponse(answer, headers={"x-dp-rank": str(stream.rank), **headers})
