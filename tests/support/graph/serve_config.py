"""Configurations of graphs that tests start: the repository's own, on free ports, with changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.free_ports import find_free_ports

REPO = Path(__file__).resolve().parents[3]
Json = dict[str, Any]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Json:
    """`base` with `changes`; mappings are merged, everything else is replaced."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def serve_config(applications: Mapping[str, Json]) -> Json:
    """The repository's `serve_config.yaml` on free ports, with one application per route prefix.

    Each application's `args` are the repository's with the given changes. Unless these say otherwise,
    `kv_events_config` names ports of the application's own: events, replay, load reports behind them.
    """
    config: Json = yaml.safe_load((REPO / "serve_config.yaml").read_text())
    template = config["applications"][0]
    config["applications"] = []
    for index, (prefix, changes) in enumerate(applications.items()):
        args = merged(merged(template["args"], {"resources": {"num_cpus": 0.2}}), changes)
        if "kv_events_config" not in changes:
            args["kv_events_config"] = json.dumps(kv_events(args["dp_size"]))
        name = template["name"] if index == 0 else f"{template['name']}-{index}"
        config["applications"].append({**template, "name": name, "route_prefix": prefix, "args": args})
    config["http_options"]["port"] = find_free_ports(1)
    return config


def with_args(config: Json, changes: Json) -> Json:
    """`config` with these changes to its only application's `args`."""
    (application,) = config["applications"]
    return config | {"applications": [application | {"args": merged(application["args"], changes)}]}


def kv_events(dp_size: int) -> Json:
    """A `kv_events_config` on free ports for `dp_size` ranks."""
    base = find_free_ports(6 * dp_size)
    return {
        "publisher": "zmq",
        "endpoint": f"tcp://127.0.0.1:{base}",
        "replay_endpoint": f"tcp://127.0.0.1:{base + 2 * dp_size}",
        "topic": "kv",
    }


def tiny_args(model: str) -> Json:
    """Two ranks, equally slow on every machine: streams must last longer than a test needs to break them."""
    return {
        "model": {"path": model, "served_name": ["tiny", "tiny-alias"], "dtype": "float32"},
        "engine": {
            "kernels": "torch",
            "cache": {"num_blocks": 256},
            "scheduler": {"max_running_requests": 3, "max_waiting_requests": 24},
        },
        "routing": {"policy": "session"},  # predicted_ttft for every request without a session
        "ingress": {
            "max_request_bytes": 100_000,
            "allow_flush_cache": True,
            "cors_origins": ["https://page.example.org"],
        },
    }
