"""The settings of a deployment by subject: frozen models, unknown keys refused.

`app.config` puts them together. Each part of the program receives its own slice.
"""

from __future__ import annotations

import re
from collections.abc import Collection
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
from pydantic_core import PydanticCustomError

from app.validation import field_fault, one_of

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
KernelBackend = Literal["auto", "torch", "cpu", "triton"]
MAX_DP_SIZE = 1024
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
PerNode = Annotated[int, Field(ge=1, le=100, strict=True)]
"""How many replicas Ray may put on one node; its own limit is 100."""
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


_ORIGIN = re.compile(r"https?://[A-Za-z0-9._\-\[\]:]+")
"""What browsers send as Origin (RFC 6454, 6.2), of pages that come by HTTP."""

ServedName = Annotated[str, Field(min_length=1)]


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
    served_name: ServedName | tuple[ServedName, ...] | None = Field(
        None,
        description="The name that clients use, or a list of names; answers have the first. Default: the "
        "last part of `path`, without .gguf. An id of the Hub may always be used too.",
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
    chat_template_content_format: Literal["auto", "string", "openai"] = Field(
        "auto",
        description="How the chat template takes a message's content: as a string, or as a list of parts in "
        "OpenAI's form. `auto` looks whether the template loops over it.",
    )
    special_tokens_in_messages: Literal["tokens", "text"] = Field(
        "tokens",
        description="What the text of a special token inside a chat's message is, such as `<|im_end|>`: that "
        "token, or as `text` the tokens of its characters, so that no message can end its turn.",
    )
    tool_call_format: Literal["auto", "none", "hermes", "llama_json", "llama_pythonic", "mistral"] = Field(
        "auto", description="How the model writes calls of tools. `auto` looks how its chat template does."
    )
    reasoning_format: Literal["auto", "none", "think"] = Field(
        "auto",
        description="Whether outputs begin with thoughts, `<think>…</think>`. `auto` looks whether the chat "
        "template knows them.",
    )

    @field_validator("served_name")
    @classmethod
    def _are_different_names(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise ValueError("one name or more are needed, each once")
        return value


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
    stall_timeout_s: PositiveFloat = Field(
        10.0,
        description="A rank that has work and makes no step for so long, beyond what its longest step took, "
        "gets no requests, and loses those that it has.",
    )
    drain_timeout_s: float = Field(
        30.0,
        ge=0,
        description="Seconds that a rank which is replaced or no longer needed may go on with its requests; "
        "then other ranks take them over. 0: they do at once.",
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


class RankAutoscalingConfig(Settings):
    """How many ranks there are, by their load, instead of a fixed `dp_size`."""

    min_ranks: int = Field(
        1,
        ge=0,
        le=MAX_DP_SIZE,
        strict=True,
        description="Ranks that there always are. 0: without requests there is none, and the next one waits "
        "until one has started.",
    )
    max_ranks: PositiveInt = Field(le=MAX_DP_SIZE, description="Ranks that there are at most.")
    target_queue_wait_s: PositiveFloat = Field(
        2.0, description="Seconds of prefill that may wait at a rank; if more do, ranks are added."
    )
    target_usage: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Share of a rank's KV blocks, or of the places in its batch, that requests may take or "
        "wait for; if they need more, ranks are added. Cached blocks that no request holds are free.",
    )
    upscale_delay_s: float = Field(
        10.0, ge=0, description="Seconds for which more ranks must be needed until they are started."
    )
    downscale_delay_s: float = Field(
        300.0, ge=0, description="Seconds for which fewer ranks must do until some are stopped."
    )
    start_timeout_s: PositiveFloat = Field(
        180.0,
        description="Seconds that a request waits for a rank where none runs; then it is answered 503.",
    )

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.max_ranks < self.min_ranks:
            why = f"min_ranks is {self.min_ranks}; at least that is needed"
            fault = field_fault(("max_ranks",), self.max_ranks, why)
            raise ValidationError.from_exception_data(type(self).__name__, [fault])
        return self


class RankResources(Settings):
    """What Ray reserves for one rank."""

    num_cpus: float = Field(1.0, ge=0, description="CPUs of one rank; fractions allowed.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of one rank; fractions allowed.")
    max_ranks_per_node: PerNode | None = Field(
        None, description="Ranks on one node at most. null: as many as its CPUs and GPUs allow."
    )
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


class MissesConfig(Settings):
    """Why tokens weren't cached: what each router remembers to tell it."""

    remembered_blocks: PositiveInt = Field(
        262_144,
        description="Blocks of prompts, blocks that ranks dropped, and pieces of content that each router "
        "remembers, so many of each: some 0.5 kB for the three together.",
    )
    texts: bool = Field(
        False,
        description="Whether routers get the prompts' texts, keep them in memory, and show the words that "
        "changed at `/router/misses` and in receipts, to everyone who can read these. Without, they get "
        "hashes, and a place is exact to the block.",
    )


class RoutingConfig(Settings):
    """How requests find their rank."""

    policy: str = Field(
        "predicted_ttft",
        description="By what the rank is chosen: a name in `app.routing.policies.registry`, which knows what "
        "each policy does; docs/operations.md#policies has them all.",
    )
    num_routers: PositiveInt = Field(1, description="Router replicas; each follows every rank.")
    max_routers_per_node: PerNode | None = Field(
        None,
        description="Routers on one node at most. null: Ray spreads them where it can. With too few nodes "
        "for all routers, some wait for a node.",
    )
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
    misses: MissesConfig = MissesConfig()

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
    max_ingresses_per_node: PerNode | None = Field(
        None, description="Ingresses on one node at most; see `routing.max_routers_per_node`."
    )
    max_retries: int = Field(
        3,
        ge=0,
        description="Other ranks tried for a request whose rank was lost, before or after its first token. "
        "What a rank that is replaced or no longer needed hands over isn't counted.",
    )
    rank_wait_s: float = Field(
        30.0,
        ge=0,
        description="Seconds that a request waits for a rank while none can take it, new or in the middle of "
        "its answer; then it ends with an error.",
    )
    max_request_bytes: PositiveInt = Field(4 * 2**20, description="Largest request body in bytes.")
    tenant_header: str | None = Field(
        None,
        description="The request header by which a trusted gateway names the tenant; without it a prompt is "
        "answered 400. Tenants share no cached blocks. null: there are no tenants.",
    )

    cors_origins: tuple[str, ...] = Field(
        (),
        description="Origins of web pages whose scripts may read answers (`https://example.org`, with a port "
        "if it isn't the usual one), or `*` for all. None: no other page's.",
    )
    drain_timeout_s: float = Field(
        300.0, ge=0, description="Seconds that an ingress which is replaced may go on with its answers."
    )
    allow_flush_cache: bool = Field(
        False, description="Whether `/flush_cache` empties every rank's cache for any client, as in SGLang."
    )

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [each for each in value if each != "*" and not _ORIGIN.fullmatch(each)]
        if wrong:
            raise ValueError(
                f"{wrong[0]!r}: * or http://host or https://host is needed, with a port or without"
            )
        return value

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
