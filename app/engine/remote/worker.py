"""One rank of a worker as the worker describes it, and what of that doesn't fit this deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

WorkerKind = Literal["kvbeacon", "sglang", "vllm"]

MAX_COUNT = 2**53
"""Larger numbers of tokens, blocks or requests are nonsense, and some don't fit into a load report."""
WILDCARDS = ("*", "0.0.0.0", "::", "[::]")


@dataclass(frozen=True, slots=True)
class Publisher:
    """Where one rank publishes, as ZMQ addresses that can be dialled.

    Attributes:
        events: of its cache events.
        replay: answers replays; None: none.
        load: of its load reports; None: none.
        topic, load_topic: what to subscribe to.
        is_encrypted: it wants keys that we don't have.
        epoch: another one after each start, where the worker says it.
    """

    events: str
    replay: str | None
    load: str | None
    topic: str
    load_topic: str | None
    is_encrypted: bool = False
    epoch: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerDescription:
    """What stays the same of one rank until its worker is started again.

    Attributes:
        kind: which of the APIs it speaks.
        version: the server's.
        dp_size: ranks that it says it has.
        model_names: every name and path that it gives for its model.
        max_model_len: its context in tokens; None: it doesn't say.
        block_size: tokens per block, by its own words; None: it doesn't say.
        num_blocks: of the rank's cache; None: it doesn't say.
        publisher: of the rank; None: nothing can be followed.
        no_publisher: why there is none.
        partial_cache: why its publisher itself doesn't know all of the cache; None: it does.
        dp_rank: the rank by which requests are pinned; None: there is no other.
        higher_first: whether it serves requests of a higher priority first.
        ignored: fields of requests that it would silently leave out, and why.
        cannot_generate: why requests can't be sent there; None: they can.
    """

    kind: WorkerKind
    version: str
    dp_size: int
    model_names: tuple[str, ...]
    max_model_len: int | None
    block_size: int | None
    num_blocks: int | None
    publisher: Publisher | None
    no_publisher: str = ""
    partial_cache: str | None = None
    dp_rank: int | None = None
    higher_first: bool = True
    ignored: Mapping[str, str] = field(default_factory=dict)
    cannot_generate: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that the rank's cache holds; 0: it doesn't say."""
        return (self.num_blocks or 0) * (self.block_size or 0)

    @property
    def label(self) -> str:
        """The worker's make, for what describes our rank."""
        return f"{self.kind} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class Expected:
    """What the deployment's settings say of a worker.

    Attributes:
        dp_size: its ranks.
        model_names: names and paths by which its model may go.
        max_model_len: tokens of the context that is served here.
        has_tenants: whether each request has a salt, which keeps tenants apart.
    """

    dp_size: int
    model_names: frozenset[str]
    max_model_len: int
    has_tenants: bool = False

    def fault(self, worker: WorkerDescription) -> str | None:
        """Why serving from `worker` would be wrong; None: it wouldn't."""
        if worker.cannot_generate is not None:
            return worker.cannot_generate
        if worker.dp_size != self.dp_size:
            return f"it has {worker.dp_size} DP ranks; remote_ranks.workers says dp_size = {self.dp_size}"
        theirs = {last_part(name) for name in worker.model_names}
        if theirs and not theirs & {last_part(name) for name in self.model_names}:
            return f"it serves {', '.join(worker.model_names)}; model.path is {min(self.model_names)}"
        if self.has_tenants and "cache_salt" in worker.ignored:
            return f"cache_salt, which keeps tenants apart: {worker.ignored['cache_salt']}"
        return None

    def context(self, worker: WorkerDescription) -> int:
        """Tokens that a request may have there."""
        return min(self.max_model_len, worker.max_model_len or self.max_model_len)


@dataclass(frozen=True, slots=True)
class RemoteRank:
    """Which worker's rank is one of ours, by the settings.

    Attributes:
        dp_rank: our number of it.
        url: the worker's.
        worker_rank: its number there.
        expected: what the settings say of the worker.
        model_dir: the model's folder here.
        block_size: tokens of a block of ours.
        max_requests: that are sent to the worker at once at most.
        may_flush: whether its cache may be emptied when not all of it can be known.
        stall_timeout_s: how much longer than ever before it may send nothing for our requests.
        api_key: that the worker wants; None: it wants none.
    """

    dp_rank: int
    url: str
    worker_rank: int
    expected: Expected
    model_dir: str
    block_size: int
    max_requests: int
    may_flush: bool
    stall_timeout_s: float
    api_key: str | None = field(default=None, repr=False)  # a secret: no log and no error may show it


def last_part(name: str) -> str:
    """Of a path or a Hub's id: one server may have a folder where another has the id."""
    return name.rstrip("/").rpartition("/")[2].lower()


def port_fault(port: object) -> str | None:
    """What is wrong with the number of a port; None: nothing."""
    is_port = type(port) is int and 0 < port < 2**16
    return None if is_port else f"allowed: 1 to {2**16 - 1}"


def endpoint_fault(endpoint: str) -> str | None:
    """Why no client can dial a ZMQ address, as a worker says it; None: one can."""
    transport, _, rest = endpoint.partition("://")
    if transport == "inproc":
        return "which no other process can dial"
    if transport == "ipc" and rest:
        return None
    host, _, port = rest.rpartition(":")
    is_number = port.isascii() and port.isdigit() and len(port) <= 5
    if transport != "tcp" or not host or not is_number or port_fault(int(port)) is not None:
        return "which is no address: tcp://host:port is needed"
    return None


def dialled(endpoint: str, server_host: str) -> str:
    """A ZMQ address as one dials it: a wildcard host stands for the server's."""
    transport, _, rest = endpoint.partition("://")
    host, _, port = rest.rpartition(":")
    return f"tcp://{server_host}:{port}" if transport == "tcp" and host in WILDCARDS else endpoint
