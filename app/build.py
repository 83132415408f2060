"""The whole graph in one function: what `serve_config.yaml` names as its import path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import RequestRouter
from ray.serve.schema import LoggingConfig

from app.checks.cluster import check_cluster
from app.checks.plan import CONTROL_CPUS, Plan, make_plan
from app.config import AppConfig
from app.deployments.ingress.ingress import Ingress
from app.deployments.nearest_first import NearestFirst
from app.deployments.rank.dp_rank import DPRank
from app.deployments.replica_addressing import ReplicaAddressing
from app.deployments.router.router import Router
from app.engine.resources import at_most
from app.errors import KvbeaconError

HEALTH_CHECK_PERIOD_S = 1.0
"""At a check Ray sees that a replica's process is gone; by default there is one in 10 s."""
MAX_RANK_CHECKS_PER_S = 100
"""Of all ranks together: Ray's controller makes each check, and there may be a thousand ranks."""
MIN_CHECK_TIMEOUT_S = 2.0
"""Of ranks: Ray ends a replica after three checks in a row that took longer. It checks none that loads."""
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

    Serve calls this in a task of its own; a service that runs goes on until it returns.

    Raises:
        RayServeException: these can't be served. Names the field, the value and what is allowed, or the node.
    """
    plan = _checked(args)
    config, events, placement = plan.config, plan.events, plan.placement

    ranks = serve.deployment(
        name="DPRank",
        num_replicas=config.dp_size,
        max_ongoing_requests=_rank_capacity(config),
        ray_actor_options=placement.actor,
        **placement.group,
        request_router_config=_sent_by(ReplicaAddressing),
        graceful_shutdown_timeout_s=_rank_drain_s(config),
        graceful_shutdown_wait_loop_s=DRAIN_CHECK_PERIOD_S,
        health_check_period_s=max(HEALTH_CHECK_PERIOD_S, config.largest_dp_size / MAX_RANK_CHECKS_PER_S),
        health_check_timeout_s=max(MIN_CHECK_TIMEOUT_S, config.engine.stall_timeout_s),
        logging_config=QUIET,
    )(DPRank).bind(config, events)
    router = serve.deployment(
        name="Router",
        num_replicas=config.routing.num_routers,
        max_ongoing_requests=MAX_CONNECTIONS,
        ray_actor_options={"num_cpus": CONTROL_CPUS},
        **at_most(config.routing.max_routers_per_node),
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        request_router_config=_sent_by(NearestFirst),
        max_surge_percent=SURGE_PERCENT,
        logging_config=QUIET,
    )(Router).bind(config, events, ranks)
    return serve.deployment(
        name="Ingress",
        num_replicas=config.ingress.num_ingresses,
        max_ongoing_requests=MAX_CONNECTIONS,
        ray_actor_options={"num_cpus": CONTROL_CPUS},
        **at_most(config.ingress.max_ingresses_per_node),
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        max_surge_percent=SURGE_PERCENT,
        graceful_shutdown_timeout_s=config.ingress.drain_timeout_s,
    )(Ingress).bind(config, events, router, ranks)


def _sent_by(chooser: type[RequestRouter]) -> RequestRouterConfig:
    # Its constructor's annotation allows only dicts; Ray accepts the class, as documented.
    return RequestRouterConfig.model_validate({"request_router_class": chooser})


def _checked(args: Mapping[str, Any]) -> Plan:
    try:
        plan = make_plan(args)
        check_cluster(plan)
    except KvbeaconError as error:
        # Of this class `serve status` shows the sentence alone; any other is tried three times more, and
        # shown as a traceback.
        raise RayServeException(str(error)) from None
    return plan


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
