"""Options under `deployments:` that one of our settings decides are refused, with that setting's name."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve.schema import ServeApplicationSchema

from app.check import IMPORT_PATH
from app.checks.overrides import check_overrides
from app.errors import ConfigError


def application(deployment: str, **options: Any) -> ServeApplicationSchema:
    return ServeApplicationSchema.model_validate(
        {"import_path": IMPORT_PATH, "deployments": [{"name": deployment, **options}]}
    )


@pytest.mark.parametrize(
    ("deployment", "option", "value", "remedy"),
    [
        ("DPRank", "num_replicas", 3, "set args.dp_size instead"),
        ("DPRank", "num_replicas", "auto", "set args.dp_size instead"),
        ("DPRank", "autoscaling_config", {"max_replicas": 3}, "set args.autoscaling instead"),
        ("DPRank", "ray_actor_options", {"num_cpus": 3.0}, "set args.resources instead"),
        ("DPRank", "max_replicas_per_node", 1, "set args.resources.max_ranks_per_node instead"),
        ("DPRank", "max_ongoing_requests", 5, "ranks queue requests themselves"),
        ("DPRank", "user_config", {"a": 1}, "settings are under args"),
        ("Router", "num_replicas", 2, "set args.routing.num_routers instead"),
        ("Ingress", "num_replicas", 2, "set args.ingress.num_ingresses instead"),
        ("Ingress", "graceful_shutdown_timeout_s", 2.0, "set args.ingress.drain_timeout_s instead"),
    ],
)
def test_an_option_that_a_setting_decides_is_refused(
    deployment: str, option: str, value: object, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_overrides(application(deployment, **{option: value}))
    assert str(caught.value).startswith(f"deployments.{deployment}.{option} = {value!r}: ")
    assert remedy in str(caught.value)


def test_a_deployment_that_is_none_of_ours_is_named() -> None:
    with pytest.raises(ConfigError, match=r"deployments\.Rank: .* there are DPRank, Router, Ingress"):
        check_overrides(application("Rank"))


def test_other_options_and_none_at_all_are_accepted() -> None:
    check_overrides(ServeApplicationSchema(import_path=IMPORT_PATH))
    for deployment in ("DPRank", "Router", "Ingress"):
        check_overrides(
            application(deployment, health_check_period_s=5, logging_config={"log_level": "DEBUG"})
        )
