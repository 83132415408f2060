"""The whole graph in one function: what `serve_config.yaml` names as its import path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.schema import LoggingConfig

from app.config import AppConfig, load_config
from app.deployments.autoscaling.ray_settings import ray_autoscaling
from app.deployments.ingress.ingress import Ingress
from app.deployments.rank.dp_rank import DPRank
from app.deployments.replica_addressing import ReplicaAddressing
from app.deployments.router.router import Router
from app.engine.resources import rank_placement
from app.engine.vllm.arguments import check_given
from app.events.endpoints import parse_kv_events
from app.routing.policies.registry import POLICIES

CONTROL_CPUS = 0.1
"""What Ray reserves for a router or an ingress; both mostly wait."""
HEALTH_CHECK_PERIOD_S = 1.0
"""Of routers and ingresses. At a check Ray sees that a replica's process is gone; by default there is one in
10 s. That is enough for ranks: there may be a thousand, they load slowly, and routers drop dead ones."""
QUIET = LoggingConfig(enable_access_log=False)
"""For deployments that are called all the time, not by users."""
DRAIN_CHECK_PERIOD_S = 0.5
"""How often a rank that is replaced looks whether its calls have ended; its successor waits for its place."""
HAND_OVER_S = 15.0
"""For a rank's last requests to leave it, after the time that they may stay: Ray then kills it."""
SURGE_PERCENT = 20
"""Routers and ingresses that a redeploy starts before it stops old ones, rounded up, so that there is always
one that answers. Ranks have memory and devices of their own, for which there is seldom room twice: one is
stopped first, and the others serve meanwhile."""
MAX_CONNECTIONS = 10_000
"""Calls that one router or ingress holds open; ranks refuse what they can't queue long before."""


def build_app(args: Mapping[str, Any]) -> Application:
    """Ingress → Router → DPRank × dp_size.

    Raises:
        ConfigError: a setting is wrong; names the field, the value and what is allowed.
    """
    # Unknown policies and keys, and overlapping ports, are refused here, before any rank starts.
    config = load_config(args, policies=POLICIES)
    events = parse_kv_events(config)
    check_given(config)
    placement = rank_placement(config)

    # Its constructor's annotation allows only dicts; Ray accepts the class, as documented.
    request_router = RequestRouterConfig.model_validate({"request_router_class": ReplicaAddressing})
    ranks = serve.deployment(
        name="DPRank",
        **_num_ranks(config),
        max_ongoing_requests=_rank_capacity(config),
        ray_actor_options=placement.actor,
        **placement.group,
        request_router_config=request_router,
        graceful_shutdown_timeout_s=_rank_drain_s(config),
        graceful_shutdown_wait_loop_s=DRAIN_CHECK_PERIOD_S,
        logging_config=QUIET,
    )(DPRank).bind(config, events)
    router = serve.deployment(
        name="Router",
        num_replicas=config.routing.num_routers,
        max_ongoing_requests=MAX_CONNECTIONS,
        ray_actor_options={"num_cpus": CONTROL_CPUS},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        max_surge_percent=SURGE_PERCENT,
        logging_config=QUIET,
    )(Router).bind(config, events, ranks)
    return serve.deployment(
        name="Ingress",
        num_replicas=config.ingress.num_ingresses,
        max_ongoing_requests=MAX_CONNECTIONS,
        ray_actor_options={"num_cpus": CONTROL_CPUS},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        max_surge_percent=SURGE_PERCENT,
        graceful_shutdown_timeout_s=config.ingress.drain_timeout_s,
    )(Ingress).bind(config, events, router, ranks)


def _num_ranks(config: AppConfig) -> dict[str, Any]:
    """`serve.deployment` takes one of these, not both."""
    if config.autoscaling is None:
        return {"num_replicas": config.dp_size}
    return {"autoscaling_config": ray_autoscaling(config.autoscaling)}


def _rank_capacity(config: AppConfig) -> int:
    """More than the engine queues, so that the engine refuses, with a reason, before Ray makes calls wait."""
    scheduler = config.engine.scheduler
    return 2 * (scheduler.max_running_requests + scheduler.max_waiting_requests) + 100


def _rank_drain_s(config: AppConfig) -> float:
    """How long a rank that is being replaced may go on.

    Ingresses take its requests away after `engine.drain_timeout_s` where another rank can go on with them.
    Where none can, as when everything is drained, they may stay as long as their ingress does.
    """
    return max(config.engine.drain_timeout_s, config.ingress.drain_timeout_s) + HAND_OVER_S
