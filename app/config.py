"""Every setting of a deployment: frozen models, one per subject, unknown keys refused.

`serve_config.yaml` gives these under `args:` of the application; `load_config` turns them into an
`AppConfig` or raises `ConfigError` that names the field, the value and what is allowed. Each part of the
program receives its own slice. `kv_events_config`, SGLang's contract, stays as it was given here;
`app.events.endpoints` reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from app.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
KernelBackend = Literal["auto", "torch", "cpu", "triton"]
EngineKind = Literal["torch", "vllm", "remote"]
"""What a rank runs: our engine, vLLM in the replica, or a worker by URL."""

Model = TypeVar("Model", bound=BaseModel)

MAX_DP_SIZE = 1024

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

    url: str = Field(min_length=1, description="Where its HTTP is: http://host:port.")
    dp_size: PositiveInt = Field(
        1, le=MAX_DP_SIZE, description="Its DP ranks, each one of ours: a worker that is down can't say it."
    )


class RemoteRanksConfig(Settings):
    """Workers by URL, instead of engines of our own: SGLang, vLLM or kvbeacon."""

    workers: tuple[RemoteWorker, ...] = Field(min_length=1, description="In the order of their ranks.")
    adopt: Literal["partial", "flush"] = Field(
        "partial",
        description="When a worker's early events are gone: `flush` empties its cache once, `partial` "
        "leaves it and credits only what was seen.",
    )


class RankResources(Settings):
    """What Ray reserves for one rank."""

    num_cpus: float = Field(1.0, ge=0, description="CPUs of one rank; fractions allowed.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of one rank; fractions allowed.")


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
        None, description="Workers by URL instead of engines; `dp_size` is then the sum of theirs."
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

    @property
    def engine_kind(self) -> EngineKind:
        """What each rank runs."""
        return "remote" if self.remote_ranks is not None else self.engine.backend

    @property
    def threads_per_rank(self) -> int:
        """Torch threads of one rank on a cpu."""
        return self.engine.num_threads or max(1, int(self.resources.num_cpus))


def load_config(args: Mapping[str, Any], *, policies: Collection[str] | None = None) -> AppConfig:
    """The validated configuration.

    Args:
        args: what `serve_config.yaml` has under this name.
        policies: the names that `routing.policy` may have; None accepts any, and the lookup refuses it.

    Raises:
        ConfigError: one line per fault, each with the field's path, the value and what is allowed.
    """
    return validate(AppConfig, args, where="args", context={"policies": policies})


def one_of(names: Iterable[str]) -> str:
    """Names that are allowed, for a message."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last


def validate(
    model: type[Model], values: Any, *, where: str, context: Mapping[str, Any] | None = None
) -> Model:
    """`values` as a `model`, whose validators read `context`.

    Raises:
        ConfigError: as for `load_config`, each field's path starting with `where`.
    """
    try:
        return model.model_validate(values, context=context)
    except ValidationError as error:
        faults = "; ".join(_fault(model, where, dict(detail)) for detail in error.errors())
        raise ConfigError(faults) from None


def _fault(model: type[BaseModel], where: str, detail: dict[str, Any]) -> str:
    path = [str(part) for part in detail["loc"]]
    field = ".".join([where, *path])
    if detail["type"] == "extra_forbidden":
        allowed = ", ".join(_fields_at(model, path[:-1]))
        return f"{field}: unknown key; allowed here: {allowed}"
    return f"{field} = {detail['input']!r}: {detail['msg']}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The field names of the settings model at `path` below `model`."""
    for name in path:
        annotation = model.model_fields[name].annotation
        # An optional part is a union with None.
        inner = [each for each in (annotation, *get_args(annotation)) if _is_model(each)]
        if not inner:
            break
        model = inner[0]
    return list(model.model_fields)


def _is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
