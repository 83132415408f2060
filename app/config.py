"""Every setting of a deployment, put together from `app.settings`.

`serve_config.yaml` gives these under `args:` of the application; `load_config` turns them into an
`AppConfig` or raises `ConfigError` that names the field, the value and what is allowed.
`kv_events_config`, SGLang's contract, stays as it was given here; `app.events.endpoints` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from math import prod
from typing import Any, Literal, Self, TypeVar

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from app.settings.base import MAX_DP_SIZE, PositiveInt, Settings
from app.settings.engine import EngineConfig
from app.settings.ingress import IngressConfig
from app.settings.model import ModelConfig
from app.settings.ranks import RankAutoscalingConfig, RankResources, RemoteRanksConfig
from app.settings.routing import RoutingConfig
from app.validation import field_fault, validate, value_at

Part = TypeVar("Part", bound=Settings)

EngineKind = Literal["torch", "vllm", "remote"]
"""What a rank runs: our engine, vLLM in the replica, or a worker by URL."""

REMOTE_RANK_CPUS = 0.1
"""Of a rank whose engine runs elsewhere: it mostly waits."""
WORKER_COUNTS = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")
"""vLLM's engine arguments whose product is the number of its worker processes."""


class AppConfig(Settings):
    """Everything under `args:` of the application in `serve_config.yaml`."""

    dp_size: PositiveInt = Field(
        2, le=MAX_DP_SIZE, description="Data-parallel ranks; with `autoscaling` those that there are at most."
    )
    autoscaling: RankAutoscalingConfig | None = Field(
        None,
        description="Ranks are added and removed by their load; `dp_size` is then `max_ranks`. null: there "
        "are always `dp_size` ranks.",
    )
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    remote_ranks: RemoteRanksConfig | None = Field(
        None,
        description="Workers by URL instead of engines; `dp_size` is then the sum of theirs, and "
        "`resources.num_cpus` 0.1 by default.",
    )
    resources: RankResources = RankResources()
    kv_events_config: str | dict[str, Any] | None = Field(
        None,
        description="SGLang's JSON string, or a mapping of its keys; null publishes nothing and routes "
        "by load alone.",
    )
    routing: RoutingConfig = RoutingConfig()
    ingress: IngressConfig = IngressConfig()

    @field_validator("kv_events_config", mode="before")
    @classmethod
    def _is_a_document(cls, value: Any) -> Any:
        """`/server_info` shows it as it was given, so JSON must be able to say it."""
        if not isinstance(value, str | dict | None):
            raise ValueError("allowed are a JSON string, a mapping and null")
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            raise ValueError("allowed are keys that are text")
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"JSON can't say this: {error}") from None
        return value

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        """With what `remote_ranks` or `autoscaling` decide, where nothing else is given."""
        if not isinstance(values, Mapping):
            return values
        remote = _valid(RemoteRanksConfig, values.get("remote_ranks"))
        if remote is not None:
            resources = values.get("resources", {})
            if isinstance(resources, Mapping):
                resources = {"num_cpus": REMOTE_RANK_CPUS, **resources}
            return {"dp_size": remote.dp_size, **values, "resources": resources}
        autoscaling = _valid(RankAutoscalingConfig, values.get("autoscaling"))
        return values if autoscaling is None else {"dp_size": autoscaling.max_ranks, **values}

    @model_validator(mode="after")
    def _one_number_of_ranks(self) -> Self:
        """Refuses another `dp_size` than the one that follows from the rest, and two ways to have ranks."""
        if self.autoscaling is None:
            return self
        faults: list[InitErrorDetails] = []
        if self.remote_ranks is not None:
            why = "remote_ranks is given too: there is a rank for each of its workers' ranks, and no other"
            faults.append(field_fault(("autoscaling",), self.autoscaling.model_dump(), why))
        elif self.dp_size != (largest := self.autoscaling.max_ranks):
            why = f"autoscaling.max_ranks is {largest}; leave dp_size out, or give that"
            faults.append(field_fault(("dp_size",), self.dp_size, why))
        if faults:
            raise ValidationError.from_exception_data(type(self).__name__, faults)
        return self

    @model_validator(mode="after")
    def _nothing_but_remote_ranks(self) -> Self:
        """Refuses what only an engine of ours could do, where it isn't as it is by default."""
        if self.remote_ranks is None:
            return self
        faults: list[InitErrorDetails] = []
        if self.dp_size != (total := self.remote_ranks.dp_size):
            why = f"remote_ranks.workers have {total} ranks; leave dp_size out, or give that"
            faults.append(field_fault(("dp_size",), self.dp_size, why))
        for path in _OF_AN_ENGINE:
            default, given = value_at(AppConfig.model_construct(), path), value_at(self, path)
            if given != default:
                faults.append(
                    field_fault(
                        path, given, "remote_ranks is given too: its workers have engines of their own"
                    )
                )
        if faults:
            raise ValidationError.from_exception_data(type(self).__name__, faults)
        return self

    @property
    def largest_dp_size(self) -> int:
        """The most ranks that there are to be; ports are planned for them."""
        return self.dp_size

    @property
    def expected_dp_size(self) -> int:
        """As many ranks as there should be at least: fewer mean that some are missing."""
        return self.dp_size if self.autoscaling is None else self.autoscaling.min_ranks

    @property
    def engine_kind(self) -> EngineKind:
        """What each rank runs."""
        return "remote" if self.remote_ranks is not None else self.engine.backend

    @property
    def tp_size(self) -> int:
        """GPUs over which each of a rank's tensors is spread."""
        return self._vllm_size("tensor_parallel_size")

    @property
    def num_engine_workers(self) -> int:
        """Processes in which one rank's model computes, each with a GPU if there are GPUs."""
        return prod(map(self._vllm_size, WORKER_COUNTS))

    def _vllm_size(self, name: str) -> int:
        size = self.engine.vllm.get(name, 1)  # checked where the engine's arguments are
        return size if self.engine_kind == "vllm" and isinstance(size, int) else 1

    @property
    def threads_per_rank(self) -> int:
        """Torch threads of one rank on a cpu."""
        return self.engine.num_threads or max(1, int(self.resources.num_cpus))


def _valid(model: type[Part], values: Any) -> Part | None:
    """This part of the settings; None where it isn't given or wrong: then it is refused with its own path."""
    try:
        return None if values is None else model.model_validate(values)
    except ValidationError:
        return None


_OF_AN_ENGINE: tuple[tuple[str, ...], ...] = (
    *(("engine", name) for name in ("backend", "vllm", "kernels", "num_threads")),
    *(("engine", "cache", name) for name in ("num_blocks", "memory_fraction", "eviction")),
    ("engine", "scheduler", "max_batch_tokens"),
    *(("model", name) for name in ("device", "dtype")),
    ("resources", "num_gpus"),
)
"""Settings that mean nothing where ranks are workers by URL."""


def load_config(args: Mapping[str, Any], *, policies: Collection[str] | None = None) -> AppConfig:
    """The validated configuration.

    Args:
        args: what `serve_config.yaml` has under this name.
        policies: the names that `routing.policy` may have; None accepts any, and the lookup refuses it.

    Raises:
        ConfigError: one line per fault, each with the field's path, the value and what is allowed.
    """
    return validate(AppConfig, args, where="args", context={"policies": policies})
