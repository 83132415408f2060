"""What is served, whether it is well, and the descriptor by which routers find its ranks."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.responses import Response

from app.deployments.ingress.openapi.describe import described
from app.deployments.ingress.reports.health import health_answer
from app.deployments.ingress.reports.server_info import model_card, model_info, server_info
from app.deployments.ingress.service import Service
from app.deployments.messages import Json


def model_routes(service: Service) -> APIRouter:
    """The routes that clients and other programs ask before they send a prompt."""
    router = APIRouter()

    @router.get("/v1/models", openapi_extra=described(answer="ModelList"))
    async def models() -> Json:
        """What can be named in a request's `model`."""
        cards = [model_card(service.config, service.max_model_len, name) for name in service.model_names]
        return {"object": "list", "data": cards}

    @router.get("/v1/models/{name:path}", openapi_extra=described(answer="Model"))
    async def model(name: str) -> Json:
        """The one model, by one of its names."""
        service.reader.check_model_name(name)
        return model_card(service.config, service.max_model_len, name)

    @router.get("/health")
    async def health() -> Response:
        """200 when some router has a rank for requests, else 503; and which ranks can't, and why not."""
        views = await service.routers.views(service.config.routing.num_routers)
        answer, status = health_answer(views, service.config.expected_dp_size)
        return JSONResponse(answer, status_code=status)

    @router.get("/server_info")
    @router.get("/get_server_info")
    async def descriptor() -> Json:
        """The deployment's descriptor."""
        ranks = await service.directory.poll()
        return server_info(service.config, service.events, service.max_model_len, ranks)

    @router.get("/model_info")
    @router.get("/get_model_info")
    async def model_description() -> Json:
        """What is served."""
        return model_info(service.config, service.max_model_len)

    return router
