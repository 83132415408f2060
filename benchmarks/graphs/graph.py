"""Starts the real graph on a Ray cluster and on ports of its own, and ends what it started."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve

from app.build import build_app
from app.checks.plan import CONTROL_CPUS
from app.config import AppConfig

HOST = "127.0.0.1"
APP_NAME = "kvbeacon-benchmark"
PORTS_FROM, PORTS_TO = 20_000, 32_000
"""Below the range from which Linux gives ports to outgoing connections."""


@contextmanager
def running_ray(
    config: AppConfig, *, spare_cpus: int = 0, dashboard_port: int | None = None
) -> Iterator[str]:
    """A Ray cluster and Serve's HTTP proxy, ended with the context; gives the base URL.

    Ray gets as many CPUs as the graph reserves, also on a machine with fewer: the ranks share the real ones.

    Args:
        config: the graph's.
        spare_cpus: CPUs that Ray gets beyond those, for replicas that are there while others end.
        dashboard_port: where Ray's dashboard listens, which has Serve's REST API; None: there is none.
    """
    reserved = config.dp_size * config.resources.num_cpus
    reserved += CONTROL_CPUS * (config.routing.num_routers + config.ingress.num_ingresses)
    port = free_ports(1)
    try:
        # "local" is a new cluster, also where RAY_ADDRESS names another one.
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, math.ceil(reserved)) + spare_cpus,
            include_dashboard=dashboard_port is not None,
            dashboard_port=dashboard_port,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="HeadOnly", http_options={"host": HOST, "port": port})
        yield f"http://{HOST}:{port}"
    finally:
        ray.shutdown()


@contextmanager
def deployed(args: Mapping[str, Any]) -> Iterator[None]:
    """The graph with `args`, all caches empty, deleted with the context."""
    serve.run(build_app(args), name=APP_NAME, route_prefix="/")
    yield
    # After an error the cluster ends, and the graph with it.
    serve.delete(APP_NAME)


def with_policy(args: Mapping[str, Any], policy: str, dp_size: int) -> dict[str, Any]:
    """`args` with this policy, and with free ports for the KV events of `dp_size` ranks."""
    first_port = free_ports(6 * dp_size)
    kv_events = {
        **json.loads(args.get("kv_events_config") or "{}"),
        "publisher": "zmq",
        "endpoint": f"tcp://{HOST}:{first_port}",
        "replay_endpoint": f"tcp://{HOST}:{first_port + 2 * dp_size}",
    }
    return {
        **args,
        "kv_events_config": json.dumps(kv_events),
        "routing": {**args.get("routing", {}), "policy": policy},
    }


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports that are not bound now."""
    while True:
        first = random.randrange(PORTS_FROM, PORTS_TO - count)
        if all(_is_free(port) for port in range(first, first + count)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
