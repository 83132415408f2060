"""The HTTP application: every route, what each error looks like, and what holds for all requests.

Every answer carries `x-request-id`, the client's own or a new one: Ray Serve sees to it.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.api.error_shapes import REQUEST_ID_HEADER, answer_headers, error_body
from app.api.openai.responses import error_headers
from app.deployments.ingress.http.http_rules import HttpRules
from app.deployments.ingress.ignored_fields import ignored_header
from app.deployments.ingress.openapi.document import openapi_document
from app.deployments.ingress.routes.anthropic import anthropic_routes
from app.deployments.ingress.routes.docs import docs_routes
from app.deployments.ingress.routes.model import model_routes
from app.deployments.ingress.routes.native import native_routes
from app.deployments.ingress.routes.openai import openai_routes
from app.deployments.ingress.routes.operators import operators_routes
from app.deployments.ingress.routes.tokens import tokens_routes
from app.deployments.ingress.service import Service
from app.deployments.messages import Json
from app.errors import InternalError, InvalidRequestError, RequestError

logger = logging.getLogger("ray.serve")


class Api(FastAPI):
    """An application whose description is ours."""

    def openapi(self) -> Json:
        """The OpenAPI document; made once."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi_document(self)
        return self.openapi_schema


def build_api(service: Service) -> FastAPI:
    """The application that answers with what `service` does."""
    # The pages that FastAPI would make load scripts from another host.
    api = Api(title="kvbeacon", docs_url=None, redoc_url=None, openapi_url=None)
    api.add_middleware(HttpRules, settings=lambda: service.config.ingress)
    api.exception_handler(RequestError)(_request_error)
    api.exception_handler(ClientDisconnect)(_gone)
    api.exception_handler(HTTPException)(_http_error)
    api.exception_handler(Exception)(_internal_error)
    apis = (openai_routes, anthropic_routes, native_routes)
    for routes in (*apis, model_routes, tokens_routes, docs_routes, operators_routes):
        api.include_router(routes(service))
    return api


async def _request_error(request: Request, error: RequestError) -> JSONResponse:
    where = (request.url.path, request.headers.get(REQUEST_ID_HEADER))
    ignored = error.ignored_fields or getattr(request.state, "ignored_fields", ())
    headers = {**answer_headers(*where), **error_headers(error), **ignored_header(ignored)}
    return JSONResponse(error_body(error, *where), status_code=error.status, headers=headers)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nginx's number for it; no client reads this


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    shown = InvalidRequestError(message, code="not_found" if error.status_code == 404 else None)
    shown.status = error.status_code
    answer = await _request_error(request, shown)
    answer.headers.update(error.headers or {})
    return answer


async def _internal_error(request: Request, error: Exception) -> JSONResponse:
    logger.exception("request %s failed", request.headers.get(REQUEST_ID_HEADER), exc_info=error)
    return await _request_error(request, InternalError())
