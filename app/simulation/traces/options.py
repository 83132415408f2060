"""Agents as words on a command line: `--agents turns=20 think_median_s=5`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import yaml

from app.errors import ConfigError
from app.simulation.traces.agents import Agents
from app.simulation.traces.request import SimulatedRequest
from app.validation import validate

AGENTS_USAGE: Final = "make requests up; each NAME=VALUE sets one of the parameters below"


def agents_from(words: Sequence[str], block_size: int) -> list[SimulatedRequest]:
    """The requests of the agents that `words` describe, each NAME=VALUE; the rest is as by default.

    Args:
        words: parameters of `Agents`.
        block_size: tokens of a block.

    Raises:
        ConfigError: a word is none of these, a name is unknown, a value isn't allowed, or no request comes.
    """
    values = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"--agents {word}: Input should be NAME=VALUE")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            values[name] = text
    agents = validate(Agents, values, where="agents")
    requests = list(agents.requests(block_size))
    if not requests:
        raise ConfigError(f"agents.duration_s = {agents.duration_s:g}: no request comes in that time")
    return requests


def describe_agents() -> str:
    """All parameters with their defaults and units, for `--help`."""
    fields = Agents.model_fields.items()
    lines = [f"  {name}={field.default}\n      {field.description}" for name, field in fields]
    return "\n".join(["parameters of --agents, with their defaults:", *lines])
