"""OpenAI's API: chats and texts."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from app.api.openai.logprobs import Echo
from app.api.openai.prompts import parse_texts
from app.api.openai.requests import ChatRequest, TextRequest, parse_chat
from app.api.openai.responses import AnswerShape
from app.deployments.ingress.answers.completions import stream_answer, whole_answer
from app.deployments.ingress.answers.events import AnswerEvents
from app.deployments.ingress.answers.whole import json_answer
from app.deployments.ingress.batches.batch_stream import BatchStream
from app.deployments.ingress.openapi.describe import described
from app.deployments.ingress.request_reader import PreparedRequest
from app.deployments.ingress.service import Service


def openai_routes(service: Service) -> APIRouter:
    """The routes whose answers are completions."""
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        openapi_extra=described(ChatRequest, answer="ChatCompletion", events="ChatCompletionChunk"),
    )
    async def chat_completions(request: Request) -> Response:
        """A conversation's next message."""
        return await _complete(service, await service.read(request, parse_chat))

    @router.post(
        "/v1/completions",
        openapi_extra=described(TextRequest, answer="TextCompletion", events="TextCompletion"),
    )
    async def completions(request: Request) -> Response:
        """A text's continuation."""
        requests = await service.reader.read_all(request, parse_texts)
        return await (_complete_all(service, requests) if requests[1:] else _complete(service, requests[0]))

    return router


def _shape(service: Service, requests: Sequence[PreparedRequest[ChatRequest | TextRequest]]) -> AnswerShape:
    """The shape of the answer to these prompts."""
    generate, body = requests[0].generate, requests[0].body
    prompts = [each.generate.prompt_token_ids for each in requests]
    return AnswerShape(
        kind=body.kind,
        request_id=generate.request_id.rpartition("-")[0] if requests[1:] else generate.request_id,
        model=service.model_name,
        spell=None if generate.params.logprobs is None else service.tokenizer.spell,
        prompt_token_ids=prompts if body.return_token_ids else None,
        output=requests[0].output,
        shows_thoughts=not isinstance(body, ChatRequest) or body.include_reasoning,
        n=body.n,
        echoes=_echoes(service, requests) if isinstance(body, TextRequest) and body.echo else None,
        shows_output=not isinstance(body, TextRequest) or body.max_tokens > 0,
    )


def _echoes(service: Service, requests: Sequence[PreparedRequest[ChatRequest | TextRequest]]) -> list[Echo]:
    """The prompts as texts; tokens that the client has sent with the texts of special ones."""
    prompts = [(each.source.text, each.generate.prompt_token_ids) for each in requests]
    decode = service.tokenizer.decode
    return [
        Echo(decode(token_ids, skip_special_tokens=False) if text is None else text, token_ids)
        for text, token_ids in prompts
    ]


async def _complete_all(service: Service, requests: Sequence[PreparedRequest[TextRequest]]) -> Response:
    """One answer to several prompts."""
    body, shape = requests[0].body, _shape(service, requests)
    texts = [text for each in requests for text in service.text_streams(each)]
    stream = BatchStream(service.begin, requests)
    await stream.start()
    report = stream.report
    headers = {**service.headers(requests[0]), **report.headers()}
    if body.stream:
        events = stream_answer(shape, stream, *texts, usage=body.usage_in_stream, missed=report.details)
        return AnswerEvents(events, stream, headers)
    answer = await whole_answer(shape, stream, *texts, missed=report.details)
    return JSONResponse(answer, headers={**headers, **report.headers()})


async def _complete(service: Service, prepared: PreparedRequest[ChatRequest | TextRequest]) -> Response:
    body, shape = prepared.body, _shape(service, [prepared])
    texts = service.text_streams(prepared)
    stream, report = await service.begin(prepared)
    headers = {**service.headers(prepared), **report.header()}
    if body.stream:
        events = stream_answer(shape, stream, *texts, usage=body.usage_in_stream, missed=report.details)
        return AnswerEvents(events, stream, headers)
    answer = whole_answer(shape, stream, *texts, missed=report.details)
    return await json_answer(answer, stream, headers, report)
