"""Every shipped configuration is accepted at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from app.check import IMPORT_PATH
from app.checks.plan import make_plan

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "serve_config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_shipped_config_is_valid_and_described(file: Path) -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    (application,) = schema.applications
    assert application.import_path == IMPORT_PATH
    plan = make_plan(application.args)
    config, events = plan.config, plan.events
    assert (events.reason, events.warnings) == ("", ())
    assert events.descriptor is not None
    assert events.descriptor["dp_size"] == config.dp_size
