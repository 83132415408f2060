"""Reads a `ClusterConfig` from YAML."""

from __future__ import annotations

from pathlib import Path

import yaml

from app.config import validate
from app.errors import ConfigError
from app.simulation.config import ClusterConfig


def read_cluster(file: Path) -> ClusterConfig:
    """The simulated cluster that `file` describes; what it leaves out is as in the preset `mooncake`.

    Raises:
        ConfigError: the file can't be read, isn't YAML, or a field in it is wrong.
    """
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {error}") from None
    return validate(ClusterConfig, {} if values is None else values, where=str(file))
