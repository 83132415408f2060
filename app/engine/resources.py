"""What Ray reserves for a rank, and which Python it starts.

With several vLLM workers for each rank:

- `mp`, the default: the workers are children of the replica and share its GPUs. The replica asks for all of
  them, and Ray gives an actor GPUs of one node only.
- `ray`: the workers are actors of their own in the replica's placement group, a bundle with one GPU each. The
  replica itself has CPUs of the first bundle. Without pipeline parallelism all lie on one node.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

from app.config import AppConfig
from app.errors import ConfigError
from app.settings.ranks import RankResources


@dataclass(frozen=True)
class RankPlacement:
    """Options of a rank's deployment.

    Attributes:
        actor: `ray_actor_options`.
        group: `placement_group_bundles` and `placement_group_strategy`, or `max_replicas_per_node`.
    """

    actor: dict[str, Any]
    group: dict[str, Any] = field(default_factory=dict)

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What a node must have in all to hold a rank; of several, to hold a part of it."""
        bundles: list[dict[str, float]] | None = self.group.get("placement_group_bundles")
        return bundles or [{"CPU": self.actor["num_cpus"], "GPU": self.actor["num_gpus"]}]

    @property
    def runtime_env(self) -> dict[str, Any] | None:
        """The rank's own, where it has another Python than all the rest."""
        return self.actor.get("runtime_env")


def rank_placement(config: AppConfig) -> RankPlacement:
    """What one rank needs.

    Raises:
        ConfigError: `resources.num_gpus` isn't one for each worker, or Ray can't limit the ranks of a node.
    """
    resources, workers = config.resources, config.num_engine_workers
    uses_ray = config.engine.vllm.get("distributed_executor_backend") == "ray"
    limit = resources.max_ranks_per_node
    if config.engine_kind != "vllm" or (workers == 1 and not uses_ray):
        return RankPlacement(_actor_options(resources), at_most(limit))
    allowed = (workers,) if uses_ray else (0, workers)
    if resources.num_gpus not in allowed:
        choices = " or ".join(map(str, allowed))
        raise ConfigError(
            f"resources.num_gpus = {resources.num_gpus}: engine.vllm has {workers} workers for each rank; "
            f"allowed: {choices}"
        )
    if not uses_ray:
        return RankPlacement(_actor_options(resources), at_most(limit))
    if limit is not None:
        raise ConfigError(
            f"resources.max_ranks_per_node = {limit}: Ray has no such limit for ranks "
            "whose workers it places (engine.vllm.distributed_executor_backend = 'ray'); allowed: null"
        )
    first, others = {"CPU": resources.num_cpus, "GPU": 1.0}, [{"GPU": 1.0} for _ in range(workers - 1)]
    strategy = "STRICT_PACK" if workers == config.tp_size else "PACK"
    return RankPlacement(
        _actor_options(resources, num_gpus=0.0),
        {"placement_group_bundles": [first, *others], "placement_group_strategy": strategy},
    )


def at_most(per_node: int | None) -> dict[str, Any]:
    """Option of a deployment that limits its replicas on one node; None: there is no limit."""
    return {} if per_node is None else {"max_replicas_per_node": per_node}


def _actor_options(resources: RankResources, **changes: Any) -> dict[str, Any]:
    options = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus, **changes}
    if resources.python is not None:
        # Ray puts it into a shell's command as it is.
        options["runtime_env"] = {"py_executable": shlex.quote(str(resources.python))}
    return options
