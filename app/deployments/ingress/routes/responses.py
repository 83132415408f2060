"""OpenAI's Responses API."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from app.api.headers import named_tenant
from app.api.responses.answer import ResponseShape
from app.api.responses.request import ResponseRequest, parse_response
from app.deployments.ingress.answers.events import AnswerEvents
from app.deployments.ingress.answers.responses import stream_response, whole_response
from app.deployments.ingress.answers.whole import json_answer
from app.deployments.ingress.openapi.describe import described
from app.deployments.ingress.request_reader import PreparedRequest
from app.deployments.ingress.service import Service
from app.deployments.ingress.stored_responses import OwnResponses
from app.deployments.messages import Json
from app.errors import InvalidRequestError, UnknownResponseError, shown

MAX_PAGE = 100
"""Items of an answer at most, as OpenAI has it."""
PAGE = {
    "limit": f"Items at most, 1 to {MAX_PAGE}; 20 by default.",
    "order": "desc, the last item first, or asc.",
    "after": "The id of the item after which the answer begins.",
}


def responses_routes(service: Service) -> APIRouter:
    """The routes below `/v1/responses`."""
    router = APIRouter(prefix="/v1/responses")

    @router.post("", openapi_extra=described(ResponseRequest, answer="Response", events="ResponseEvent"))
    async def create(request: Request) -> Response:
        """The next items of a conversation."""
        return await _respond(service, request)

    @router.get("/{response_id}", openapi_extra=described(answer="Response"))
    async def get(request: Request, response_id: str) -> Response:
        """A stored response, whole."""
        if request.query_params.get("stream", "false") != "false":
            message = "stream: a stored response can't be streamed; leave it out"
            raise InvalidRequestError(message, param="stream", code="unsupported_field")
        response, _ = _own(service, request, response_id).get(response_id)
        return JSONResponse(response)

    @router.delete("/{response_id}", openapi_extra=described(answer="DeletedResponse"))
    async def delete(request: Request, response_id: str) -> Response:
        """Forget a stored response."""
        _own(service, request, response_id).delete(response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    @router.get("/{response_id}/input_items", openapi_extra=described(answer="ResponseInput", query=PAGE))
    async def input_items(request: Request, response_id: str) -> Response:
        """The input of a stored response, the last item first."""
        query = request.query_params
        limit, order = _wanted_items(query.get("limit")), query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequestError(f"order = {shown(order)}: allowed: 'asc' or 'desc'", param="order")
        _, items = _own(service, request, response_id).get(response_id)
        return JSONResponse(_page(items if order == "asc" else items[::-1], limit, query.get("after")))

    return router


async def _respond(service: Service, request: Request) -> Response:
    tenant = named_tenant(request.headers, service.config.ingress.tenant_header)
    stored = None if service.responses is None else service.responses.of(tenant)
    # With an earlier response a short body is a long conversation.
    parse = partial(parse_response, earlier=stored)
    prepared = await service.read(request, parse, may_be_long=stored is not None)
    body = prepared.body
    is_stored = body.store and stored is not None
    shape = _shape(service, prepared, is_stored=is_stored)
    texts = service.text_streams(prepared)
    stream, report = await service.begin(prepared)

    def keep(response: Json) -> None:
        if is_stored and stored is not None:
            stored.put(response, body.stored_input(prepared.generate.request_id))

    headers = {**service.headers(prepared), **report.header()}
    if body.stream:
        events = stream_response(shape, stream, *texts, missed=report.details, keep=keep)
        return AnswerEvents(events, stream, headers)
    answer = whole_response(shape, stream, *texts, missed=report.details, keep=keep)
    return await json_answer(answer, stream, headers, report)


def _shape(service: Service, prepared: PreparedRequest[ResponseRequest], *, is_stored: bool) -> ResponseShape:
    body = prepared.body
    return ResponseShape(
        prepared.generate.request_id,
        service.model_name,
        body.echo(),
        is_stored=is_stored,
        offers={offer.name: offer for offer in body.offers},
        output=prepared.output,
        packs_thoughts=body.packs_thoughts,
        spell=service.tokenizer.spell if body.wants_logprobs else None,
    )


def _own(service: Service, request: Request, response_id: str) -> OwnResponses:
    """The responses that the request may see."""
    tenant = named_tenant(request.headers, service.config.ingress.tenant_header)
    if service.responses is None:
        raise UnknownResponseError(response_id)
    return service.responses.of(tenant)


def _wanted_items(limit: str | None) -> int:
    """How many items the query asks for. Raises `InvalidRequestError`: for none, or too many."""
    if limit is None:
        return 20
    if not (limit.isdecimal() and limit.isascii() and 1 <= int(limit[:9]) <= MAX_PAGE):
        raise InvalidRequestError(f"limit = {shown(limit)}: allowed: 1 to {MAX_PAGE}", param="limit")
    return int(limit[:9])


def _page(items: list[Json], limit: int, after: str | None) -> Json:
    """A list as OpenAI pages it."""
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        message = f"after = {shown(after)}: the response's input has no item with this id"
        raise InvalidRequestError(message, param="after")
    start = 0 if after is None else ids.index(after) + 1
    page = items[start : start + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + limit < len(items),
    }
