"""The environment in which a graph's Ray serves through HAProxy instead of its own proxy."""

from __future__ import annotations

from pathlib import Path

from tests.support.free_ports import find_free_ports

MIN_DRAIN_S = 2
"""How long an ingress that is replaced stays reachable, for HAProxy to learn of it; 30 s unless it is set."""


def haproxy_environment(folder: Path) -> dict[str, str]:
    """Variables for `serve run`, with files in `folder` and ports that no other graph has.

    `RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S` is as docs/operations.md wants it: when ingresses change, HAProxy
    starts a new process, and the old one ends its connections after this time.
    """
    ports = find_free_ports(2)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports + 1),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "300",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(MIN_DRAIN_S),
    }
