"""Rank, router and ingress of one application, which take another configuration without a new process.

Starting a replica takes seconds of a core for its imports. So here Serve's `user_config` holds the `args` of
`app.build`: with them the rank is constructed again in its process, and the ingress changes its settings.
Both are the product's own classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.schema import ReplicaRank

from app.config import load_config
from app.deployments.ingress.ingress import Ingress
from app.deployments.rank.dp_rank import DPRank
from app.deployments.router.router import Router
from app.events.endpoints import parse_kv_events

CONTROL = {"num_cpus": 0}


class ReconfigurableRank(DPRank):
    """Constructed by `reconfigure`, which Serve calls before the first request too."""

    async def __init__(self) -> None:  # type: ignore[misc]
        self._args: Mapping[str, Any] | None = None

    async def reconfigure(self, user_config: Any, rank: ReplicaRank) -> None:
        """End what runs and start as a new replica with these settings would."""
        if self._args is not None:
            self.stop()
        config = load_config(user_config)
        await super().__init__(config, parse_kv_events(config))
        self._args = user_config


class ReconfigurableIngress(Ingress):
    """Answers by the settings that it received last."""

    async def reconfigure(self, args: Mapping[str, Any]) -> None:
        """Take these settings."""
        config = load_config(args)
        self.start(config, parse_kv_events(config))


def build(args: Mapping[str, Any]) -> Application:
    """The graph; its deployments `DPRank` and `Ingress` take a `user_config` like `args`."""
    config = load_config(args)
    events = parse_kv_events(config)
    user_config = dict(args)
    ranks = serve.deployment(name="DPRank", ray_actor_options=CONTROL, user_config=user_config)(
        ReconfigurableRank
    ).bind()
    router = serve.deployment(name="Router", ray_actor_options=CONTROL)(Router).bind(config, events, ranks)
    return serve.deployment(name="Ingress", ray_actor_options=CONTROL, user_config=user_config)(
        ReconfigurableIngress
    ).bind(config, events, router, ranks)
