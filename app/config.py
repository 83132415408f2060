"""Every setting of a deployment: frozen models, one per subject, unknown keys refused.

`serve_config.yaml` gives these under `args:` of the application; `load_config` turns them into an
`AppConfig` or raises `ConfigError` that names the field, the value and what is allowed. Each part of the
program receives its own slice. `kv_events_config`, SGLang's contract, stays as it was given here;
`app.events.endpoints` reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from app.validation import field_fault, one_of, validate, value_at

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
KernelBackend = Literal["auto", "torch", "cpu", "triton"]
EngineKind = Literal["torch", "vllm", "remote"]
"""What a rank runs: our engine, vLLM in the replica, or a worker by URL."""

MAX_DP_SIZE = 1024
REMOTE_RANK_CPUS = 0.1
"""Of a rank whose engine runs elsewhere: it mostly waits."""
WORKER_COUNTS = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")
"""vLLM's engine arguments whose product is the number of its worker processes."""

PositiveInt = Annotated[int, Field(ge=1, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0)]

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
"""A token as RFC 9110 has it (5.6.2)."""

_TAKEN_HEADERS = re.compile(
    # What connections, proxies and HTTP itself set or remove (RFC 9110, 7.6.1 and 7.6.3; RFC 7239),
    r"connection|keep-alive|te|trailer|transfer-encoding|upgrade|host|expect|date|via|forwarded|proxy-.*"
    r"|x-forwarded-(for|host|port|proto)"
    # what clients send about themselves and their bodies,
    r"|content-.*|accept|accept-.*|authorization|cookie|origin|referer|user-agent"
    # and what Ray Serve or the API reads: the first of them is in logs and answers.
    r"|x-request-(id|timeout-seconds|disconnect-disabled)|x-session-id|serve-multiplexed-model-id"
    r"|x-data-parallel-rank"
)
"""Headers that already have another meaning, in lower case and with hyphens."""


class Settings(BaseModel):
    """Base of every settings model: immutable, unknown keys and infinite numbers refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Settings):
    """Which model is served and in what form."""

    path: str = Field(
        "smollm2-135m-instruct",
        min_length=1,
        description="A local folder in the Hugging Face layout, a local .gguf file, a known model's name, or "
        "an id of the Hugging Face Hub (organisation/name).",
    )
    served_name: str | None = Field(
        None,
        min_length=1,
        description="The name clients use. Default: the last part of `path`, without .gguf.",
    )
    cache_dir: Path | None = Field(
        None,
        description="Folder for converted models. Default: kvbeacon/models in the user's cache folder. "
        "Models of the Hugging Face Hub stay in its own cache (`HF_HUB_CACHE`).",
    )
    device: Device = Field("auto", description="`auto` takes cuda when there is one, else cpu.")
    dtype: Dtype = Field("auto", description="`auto` takes what runs fastest on the device.")
    max_model_len: PositiveInt | None = Field(
        None, description="Longest prompt plus output in tokens. Default: the model's context."
    )


class CacheConfig(Settings):
    """The paged KV cache of one rank."""

    block_size: PositiveInt = Field(16, description="Tokens per block.")
    num_blocks: PositiveInt | None = Field(
        None, description="Blocks per rank. Default: as many as `memory_fraction` holds."
    )
    memory_fraction: float = Field(
        0.1, gt=0, le=0.98, description="Share of the device memory free after loading the weights."
    )


class SchedulerConfig(Settings):
    """How one rank batches and admits requests."""

    max_running_requests: PositiveInt = Field(64, description="Requests in one batch at most.")
    max_waiting_requests: PositiveInt = Field(512, description="A request beyond these is answered 429.")
    max_batch_tokens: PositiveInt = Field(
        512, description="Token budget of one step; longer prompts are computed in chunks of it."
    )


class EngineConfig(Settings):
    """The engine of one rank."""

    backend: Literal["torch", "vllm"] = Field(
        "torch", description="`torch` is ours; `vllm` must be installed."
    )
    vllm: dict[str, Any] = Field(
        {}, description="vLLM's engine arguments by their names, for `backend: vllm`; see docs/engines.md."
    )
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    kernels: KernelBackend = Field(
        "auto", description="Implementation of the kernels. `auto` takes what is made for the device."
    )
    num_threads: PositiveInt | None = Field(
        None, description="Torch threads per rank on a cpu. Default: `resources.num_cpus`, at least 1."
    )


class RemoteWorker(Settings):
    """A server whose DP ranks are followed and served from."""

    url: str = Field(min_length=1, description="Where its HTTP is: http://host:port, with a path or without.")
    dp_size: PositiveInt = Field(
        1, le=MAX_DP_SIZE, description="Its DP ranks, each one of ours: a worker that is down can't say it."
    )

    @field_validator("url")
    @classmethod
    def _can_be_dialled(cls, value: str) -> str:
        try:
            url = urlsplit(value)
            is_usable = bool(url.hostname) and url.port != 0 and "@" not in url.netloc
        except ValueError:
            is_usable = False
        if not is_usable or url.scheme not in ("http", "https") or url.query or url.fragment:
            raise ValueError("http://host:port is needed, with a path or without; no user, query or fragment")
        return value.rstrip("/")


class RemoteRanksConfig(Settings):
    """Workers by URL, instead of engines of our own: SGLang, vLLM or kvbeacon."""

    workers: tuple[RemoteWorker, ...] = Field(description="At least one, in the order of their ranks.")
    adopt: Literal["partial", "flush"] = Field(
        "partial",
        description="When a worker's early events are gone: `flush` empties its cache once, `partial` "
        "leaves it and credits only what was seen.",
    )

    @property
    def dp_size(self) -> int:
        """Ranks of all workers."""
        return sum(worker.dp_size for worker in self.workers)

    def worker_of(self, rank: int) -> tuple[RemoteWorker, int]:
        """The worker that our rank `rank` is at, and its number there."""
        for worker in self.workers:
            if rank < worker.dp_size:
                return worker, rank
            rank -= worker.dp_size
        raise IndexError(rank)

    @field_validator("workers")
    @classmethod
    def _are_different_ranks(cls, value: tuple[RemoteWorker, ...]) -> tuple[RemoteWorker, ...]:
        urls = [worker.url for worker in value]
        if not urls:
            raise ValueError("at least one worker is needed")
        if twice := [url for url in urls if urls.count(url) > 1]:
            raise ValueError(f"{twice[0]} is there twice; one entry has all of its ranks")
        if (total := sum(worker.dp_size for worker in value)) > MAX_DP_SIZE:
            raise ValueError(f"{total} ranks in all; at most {MAX_DP_SIZE} are allowed")
        return value


class RankResources(Settings):
    """What Ray reserves for one rank."""

    num_cpus: float = Field(1.0, ge=0, description="CPUs of one rank; fractions allowed.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of one rank; fractions allowed.")
    python: Path | None = Field(
        None,
        description="Absolute path of the Python that runs the ranks, on each of their machines. "
        "Default: the same as for all the rest.",
    )

    @field_validator("python")
    @classmethod
    def _is_the_same_from_everywhere(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("an absolute path is needed: ranks start in a folder of Ray's")
        return value


class RoutingConfig(Settings):
    """How requests find their rank."""

    policy: str = Field(
        "predicted_ttft",
        description="By what the rank is chosen: a name in `app.routing.policies.registry`, which knows what "
        "each policy does; docs/operations.md#policies has them all.",
    )
    num_routers: PositiveInt = Field(1, description="Router replicas; each follows every rank.")
    discovery_interval_s: float = Field(0.5, ge=0.05, description="Seconds between polls of the ranks.")
    reservation_timeout_s: PositiveFloat = Field(
        5.0, description="Seconds after which a reservation that no rank acknowledged is dropped."
    )
    initial_prefill_tokens_per_s: PositiveFloat = Field(
        1000.0, description="A rank's prefill rate until one has been measured anywhere."
    )
    remembered_decisions: PositiveInt = Field(
        1000,
        description="Requests whose decisions each router keeps for `/router/decisions`: some 50 bytes for "
        "each of them and each rank.",
    )

    @field_validator("policy", mode="before")
    @classmethod
    def _is_known(cls, value: Any, info: ValidationInfo) -> Any:
        """Policies aren't this module's: the caller says which there are."""
        known: Collection[str] | None = (info.context or {}).get("policies")
        if known is not None and not (isinstance(value, str) and value in known):
            raise PydanticCustomError("unknown_policy", "Input should be {known}", {"known": one_of(known)})
        return value


class IngressConfig(Settings):
    """The HTTP side."""

    num_ingresses: PositiveInt = Field(1, description="Ingress replicas.")
    max_retries: int = Field(
        3, ge=0, description="Other ranks tried for a request whose rank died before its first token."
    )
    max_request_bytes: PositiveInt = Field(4 * 2**20, description="Largest request body in bytes.")
    tenant_header: str | None = Field(
        None,
        description="The request header by which a trusted gateway names the tenant; without it a prompt is "
        "answered 400. Tenants share no cached blocks. null: there are no tenants.",
    )

    allow_flush_cache: bool = Field(
        False, description="Whether `/flush_cache` empties every rank's cache for any client, as in SGLang."
    )

    @field_validator("tenant_header")
    @classmethod
    def _names_a_header_of_its_own(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not _HEADER_NAME.fullmatch(value):
            raise ValueError("a header's name has 1 to 64 letters, digits and !#$%&'*+-.^_`|~")
        if _TAKEN_HEADERS.fullmatch(value.lower().replace("_", "-")):
            raise ValueError("this header means something else; give one that only the gateway sets")
        return value


class AppConfig(Settings):
    """Everything under `args:` of the application in `serve_config.yaml`."""

    dp_size: PositiveInt = Field(2, le=MAX_DP_SIZE, description="Data-parallel ranks.")
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
    def _with_defaults_of_remote_ranks(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("remote_ranks") is None:
            return values
        try:
            remote = RemoteRanksConfig.model_validate(values["remote_ranks"])
        except ValidationError:
            return values  # refused with the field's path, when it is validated
        resources = values.get("resources", {})
        if isinstance(resources, Mapping):
            resources = {"num_cpus": REMOTE_RANK_CPUS, **resources}
        return {"dp_size": remote.dp_size, **values, "resources": resources}

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


_OF_AN_ENGINE: tuple[tuple[str, ...], ...] = (
    *(("engine", name) for name in ("backend", "vllm", "kernels", "num_threads")),
    *(("engine", "cache", name) for name in ("num_blocks", "memory_fraction")),
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
