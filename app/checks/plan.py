"""All that the settings alone say of a start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.config import AppConfig, load_config
from app.engine.resources import RankPlacement, rank_placement
from app.engine.vllm.arguments import check_given
from app.events.endpoints import KvEvents, parse_kv_events
from app.routing.policies.registry import POLICIES

CONTROL_CPUS = 0.1
"""What Ray reserves for a router or an ingress; both mostly wait."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An application's settings, and what became of those that need working out.

    Attributes:
        config: the settings.
        events: what its `kv_events_config` asks for.
        placement: what Ray reserves for a rank.
    """

    config: AppConfig
    events: KvEvents
    placement: RankPlacement


def make_plan(args: Mapping[str, Any]) -> Plan:
    """The plan of what `serve_config.yaml` has under `args:`.

    Raises:
        ConfigError: a setting is wrong: an unknown key or policy, ports that overlap, an engine argument that
            another setting decides. Names the field, the value and what is allowed.
    """
    config = load_config(args, policies=POLICIES)
    events = parse_kv_events(config)
    check_given(config)
    return Plan(config, events, rank_placement(config))
