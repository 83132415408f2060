"""Settings of ranks that come and go by their load: what follows from them, and what contradicts them."""

from __future__ import annotations

from typing import Any

import pytest

from app.config import load_config
from app.errors import ConfigError


def autoscaling(args: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"autoscaling": {"max_ranks": 4} | fields, **(args or {})}


def test_everything_is_planned_for_the_most_ranks() -> None:
    config = load_config(autoscaling())
    assert (config.largest_dp_size, config.expected_dp_size) == (4, 1)
    assert load_config(autoscaling({"dp_size": 4})) == config
    assert load_config(autoscaling(min_ranks=0)).expected_dp_size == 0
    assert load_config(autoscaling(min_ranks=4)).expected_dp_size == 4


def test_without_it_the_number_of_ranks_is_fixed() -> None:
    config = load_config({"dp_size": 3})
    assert config.autoscaling is None
    assert (config.largest_dp_size, config.expected_dp_size) == (3, 3)


REMOTE = {"remote_ranks": {"workers": [{"url": "http://127.0.0.1:30000"}]}}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"autoscaling": {}}, "args.autoscaling.max_ranks = {}: Field required"),
        (autoscaling(max_ranks=0), "args.autoscaling.max_ranks = 0: "),
        (autoscaling(max_ranks=1025), "args.autoscaling.max_ranks = 1025: "),
        (autoscaling(min_ranks=-1), "args.autoscaling.min_ranks = -1: "),
        (autoscaling(min_ranks=0.5), "args.autoscaling.min_ranks = 0.5: "),
        (autoscaling(min_ranks=5), "args.autoscaling.max_ranks = 4: min_ranks is 5; at least that is needed"),
        (autoscaling(target_queue_wait_s=0), "args.autoscaling.target_queue_wait_s = 0: "),
        (autoscaling(target_usage=1.1), "args.autoscaling.target_usage = 1.1: "),
        (autoscaling(upscale_delay_s=-1), "args.autoscaling.upscale_delay_s = -1: "),
        (autoscaling(start_timeout_s=0), "args.autoscaling.start_timeout_s = 0: "),
        (
            autoscaling(replicas=1),
            "args.autoscaling.replicas: unknown key; allowed here: min_ranks, ",
        ),
        (autoscaling({"dp_size": 2}), "args.dp_size = 2: autoscaling.max_ranks is 4; leave dp_size out"),
        (autoscaling(REMOTE), "remote_ranks is given too: there is a rank for each of its workers' ranks"),
    ],
)
def test_a_contradiction_is_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(args)
    assert message in str(caught.value)
