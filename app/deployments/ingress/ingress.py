"""The HTTP side: OpenAI's API, SGLang's own and the descriptors, in front of the routers and the ranks."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from app.config import AppConfig
from app.deployments.ingress.api import build_api
from app.deployments.ingress.service import Service
from app.deployments.starting import says_why
from app.events.endpoints import KvEvents


@serve.ingress()
class Ingress:
    """One replica: what answers, and the routes to it, which Ray asks for when the constructor has ended.

    Args:
        config: the whole deployment's.
        events: what its `kv_events_config` asks for.
        router: handle of the `Router` deployment.
        ranks: handle of the `DPRank` deployment.
    """

    def __init__(
        self,
        config: AppConfig,
        events: KvEvents,
        router: DeploymentHandle[Any],
        ranks: DeploymentHandle[Any],
    ) -> None:
        with says_why("Ingress"):
            self._service = Service(config, events, router, ranks)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes. Called by Ray Serve, once."""
        return build_api(self._service)

    def start(self, config: AppConfig, events: KvEvents) -> None:
        """Answer by these settings from now on."""
        self._service.start(config, events)
