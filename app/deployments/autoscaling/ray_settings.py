"""Ray Serve's autoscaling of the ranks, from ours."""

from __future__ import annotations

import warnings
from typing import Final

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from app.deployments.autoscaling.policy import RankPolicy
from app.settings.ranks import RankAutoscalingConfig

MAX_REPORTS_PER_S: Final = 50
"""That all ranks send to Ray's controller: a thousand that did so each second would keep it busy."""
MIN_INTERVAL_S: Final = 1.0
MAX_INTERVAL_S: Final = 10.0
"""Seconds between two reports of a rank; the latter is Ray's default."""
REPORTS_PER_WINDOW: Final = 5
"""Reports from which the share of its time that a rank computes is worked out."""


def ray_autoscaling(config: RankAutoscalingConfig) -> AutoscalingConfig:
    """What `serve.deployment` takes as `autoscaling_config` for the ranks.

    Without initial replicas: Ray would go back to that number at every redeploy of other settings. So a new
    deployment begins with `min_ranks`, and a redeploy keeps the ranks that there are, within the bounds.
    """
    interval_s = min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, config.max_ranks / MAX_REPORTS_PER_S))
    kwargs = {"target_queue_wait_s": config.target_queue_wait_s, "target_usage": config.target_usage}
    with warnings.catch_warnings():
        # Deprecated in favour of environment variables that Ray 2.60 doesn't read for this yet.
        warnings.filterwarnings("ignore", ".*metrics_interval_s.*", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=config.min_ranks,
            max_replicas=config.max_ranks,
            upscale_delay_s=config.upscale_delay_s,
            downscale_delay_s=config.downscale_delay_s,
            metrics_interval_s=interval_s,
            look_back_period_s=REPORTS_PER_WINDOW * interval_s,
            policy=AutoscalingPolicy(policy_function=RankPolicy, policy_kwargs=kwargs),
        )
