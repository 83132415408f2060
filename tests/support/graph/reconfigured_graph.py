"""Rank, router and ingress of one application, which take another configuration without a new process.

What starting replicas costs is their imports, seconds of a core for each. So here Serve's `user_config` holds
the `args` of `app.build`, and with them the rank is constructed anew where it is; the ingress keeps all but
its settings. Both are the product's own classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application

from app.config import load_config
from app.deployments.ingress.ingress import Ingress
from app.deployments.rank.dp_rank import DPRank
from app.deployments.router.router import Router
from app.events.endpoints import parse_kv_events

CONTROL = {"num_cpus": 0}


class ReconfiguredRank(DPRank):
    """Constructed by `reconfigure`, which Serve calls before the first request too."""

    def __init__(self) -> None:
        self._is_constructed = False

    async def reconfigure(self, args: Mapping[str, Any]) -> None:
        """End what runs and start as a new replica with these settings would."""
        if self._is_constructed:
            self.stop()
        config = load_config(args)
        super().__init__(config, parse_kv_events(config))
        self._is_constructed = True


class ReconfiguredIngress(Ingress):
    """Answers by the settings that came last."""

    async def reconfigure(self, args: Mapping[str, Any]) -> None:
        """Take these settings."""
        self._config = load_config(args)
        self._events = parse_kv_events(self._config)


def build(args: Mapping[str, Any]) -> Application:
    """The graph, whose deployments `DPRank` and `Ingress` want a `user_config` like `args`."""
    config = load_config(args)
    events = parse_kv_events(config)
    options = {"ray_actor_options": CONTROL, "user_config": args}
    ranks = serve.deployment(name="DPRank", **options)(ReconfiguredRank).bind()
    router = serve.deployment(name="Router", ray_actor_options=CONTROL)(Router).bind(config, events, ranks)
    return serve.deployment(name="Ingress", **options)(ReconfiguredIngress).bind(
        config, events, router, ranks
    )
