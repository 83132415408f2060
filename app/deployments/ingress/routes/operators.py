"""What operators ask: how requests find their rank, whether the routers are right, and why caches missed."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from app.api.bodies import parse_any
from app.api.native.request import GenerateBody
from app.api.openai.requests import ChatRequest, TextRequest
from app.deployments.ingress.misses.misses_answer import misses_answer, wanted_rows
from app.deployments.ingress.openapi.describe import described
from app.deployments.ingress.reports.receipts import audit_answer, decisions_answer, named_request
from app.deployments.ingress.service import Service
from app.deployments.messages import Json


def operators_routes(service: Service) -> APIRouter:
    """The routes below `/router`."""
    router = APIRouter(prefix="/router")

    @router.get("/ranks")
    async def ranks() -> list[Json]:
        """One router's view of every rank: trust, blocks, load."""
        view = await service.routers.view()
        return [{**rank, "router": view["router"]} for rank in view["ranks"]]

    @router.get("/views")
    async def views() -> list[Json]:
        """The view of every router that answers."""
        return await service.routers.views(service.config.routing.num_routers)

    @router.get("/stats")
    async def stats() -> list[Json]:
        """How good every router's decisions have been since its start."""
        return await service.routers.stats()

    @router.get("/misses", openapi_extra=described(query={"limit": "rows at most"}))
    async def misses(request: Request) -> Json:
        """Why tokens weren't cached, and where most of them were. Query: `limit`, rows at most."""
        limit = wanted_rows(request.query_params.get("limit"))
        return misses_answer(await service.routers.misses(), limit)

    @router.get("/audit")
    async def audit() -> Response:
        """Every router's index beside every rank's cache; 503 when some rank couldn't be compared."""
        answer, status = audit_answer(await service.routers.audit())
        return JSONResponse(answer, status_code=status)

    @router.get("/decisions/{answer_id}")
    async def decisions(answer_id: str) -> Json:
        """Which rank a request went to, why, and what came of it."""
        request_id = named_request(answer_id)
        return decisions_answer(request_id, await service.routers.decisions(request_id))

    @router.post("/explain", openapi_extra=described(ChatRequest, TextRequest, GenerateBody))
    async def explain(request: Request) -> Response:
        """Which rank a request with this body, of any API, would go to now, and why."""
        prepared = await service.read(request, parse_any)
        return JSONResponse(await service.explain(prepared), headers=service.headers(prepared))

    return router
