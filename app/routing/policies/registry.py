"""The policies that a deployment may name. A new one needs a line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from app.errors import ConfigError
from app.routing.policies.base import PolicySpec
from app.routing.policies.predicted_ttft import PREDICTED_TTFT
from app.routing.policies.prefix_affinity import PREFIX_AFFINITY
from app.routing.policies.random_draws import POWER_OF_TWO, RANDOM
from app.routing.policies.request_counts import LEAST_LOADED, ROUND_ROBIN
from app.routing.policies.session import SESSION
from app.validation import one_of

_SPECS: Final = (
    PREDICTED_TTFT,
    LEAST_LOADED,
    ROUND_ROBIN,
    RANDOM,
    POWER_OF_TWO,
    PREFIX_AFFINITY,
    SESSION,
)
POLICIES: Final[Mapping[str, PolicySpec]] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""By name."""


def find_policy(name: str, *, field: str) -> PolicySpec:
    """The policy called `name`.

    Raises:
        ConfigError: there is none; says that `field` gave this name, and which names are allowed.
    """
    if name not in POLICIES:
        raise ConfigError(f"{field} = {name!r}: Input should be {one_of(POLICIES)}")
    return POLICIES[name]
