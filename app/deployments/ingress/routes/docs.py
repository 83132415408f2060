"""What this server can do, for programs and for people."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from app.deployments.ingress.openapi.page import POLICY, openapi_page
from app.deployments.ingress.service import Service
from app.deployments.messages import Json


def docs_routes(service: Service) -> APIRouter:
    """The routes that describe all others."""
    router = APIRouter()

    @router.get("/openapi.json")
    async def openapi_json(request: Request) -> Json:
        """This server's routes, bodies and answers, as OpenAPI 3.1 has them."""
        document: Json = request.app.openapi()
        return document

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        """The same as a page."""
        return HTMLResponse(openapi_page(request.app.openapi()), headers={"content-security-policy": POLICY})

    return router
