"""What `deployments:` of a Ray Serve config file may say of ours.

Serve applies these options over what `app.build` has set, unseen by it. Those that would contradict a setting
of ours, or break what ranks, routers and ingresses rely on, are refused with the setting to use.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.serve.schema import ServeApplicationSchema

from app.errors import ConfigError
from app.redaction import redacted

DEPLOYMENTS = ("DPRank", "Router", "Ingress")
_NEITHER = "kvbeacon sets it itself; leave it out"
_OF_ALL: Mapping[str, str] = {
    "max_ongoing_requests": "ranks queue requests themselves: see engine.scheduler; leave it out",
    "max_queued_requests": "ranks queue requests themselves: see engine.scheduler; leave it out",
    "backpressure_config": "ranks queue requests themselves: see engine.scheduler; leave it out",
    "user_config": "nothing reads it; settings are under args",
    "request_router_config": "requests go to the replica that a router of ours chose; leave it out",
    "gang_scheduling_config": _NEITHER,
    "deployment_actors": _NEITHER,
    "placement_group_bundles": _NEITHER,
    "placement_group_strategy": _NEITHER,
    "placement_group_bundle_label_selector": _NEITHER,
    "placement_group_fallback_strategy": _NEITHER,
}
"""Refused options of every deployment → what to do instead."""
_OF_ONE: Mapping[str, Mapping[str, str]] = {
    "DPRank": {
        "num_replicas": "set args.dp_size instead",
        "autoscaling_config": "set args.autoscaling instead",
        "max_replicas_per_node": "set args.resources.max_ranks_per_node instead",
        "ray_actor_options": "set args.resources instead",
        "graceful_shutdown_timeout_s": "set args.engine.drain_timeout_s instead",
    },
    "Router": {
        "num_replicas": "set args.routing.num_routers instead",
        "autoscaling_config": "set args.routing.num_routers instead",
        "max_replicas_per_node": "set args.routing.max_routers_per_node instead",
        "ray_actor_options": _NEITHER,
    },
    "Ingress": {
        "num_replicas": "set args.ingress.num_ingresses instead",
        "autoscaling_config": "set args.ingress.num_ingresses instead",
        "max_replicas_per_node": "set args.ingress.max_ingresses_per_node instead",
        "ray_actor_options": _NEITHER,
        "graceful_shutdown_timeout_s": "set args.ingress.drain_timeout_s instead",
    },
}


def check_overrides(application: ServeApplicationSchema) -> None:
    """Refuse options under `deployments:` that a setting of ours decides.

    Raises:
        ConfigError: names the deployment, the option, its value, and what to set instead.
    """
    given = application.model_dump(exclude_unset=True).get("deployments", [])
    for options in given:
        name = options["name"]
        if name not in DEPLOYMENTS:
            allowed = ", ".join(DEPLOYMENTS)
            raise ConfigError(f"deployments.{name}: there is no such deployment; there are {allowed}")
        for option, value in options.items():
            remedy = _OF_ONE[name].get(option) or _OF_ALL.get(option)
            if remedy is not None:
                raise ConfigError(f"deployments.{name}.{option} = {redacted(value)!r}: {remedy}")
