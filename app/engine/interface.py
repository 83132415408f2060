"""What a rank needs of an engine, whichever engine it is.

    prepare ─▶ admit ─▶ chunks … ─▶ the last sample ends, or abort
                 │
                 └─▶ cache events and load reports, in order ─▶ EngineListener

What `admit` returns is one admission, and the only way to abort it. An id could name a later request too.

An engine is asynchronous: its methods are called on one event loop, but for `content`, and none of them waits
for a step. How it computes, on a thread or in another process, is its own business. It knows no deployment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

from app.events.schema import CacheEvent, LoadStat
from app.events.snapshot import CachedBlock
from app.generation import GenerateRequest, SamplingParams, TokenChunk

Result = TypeVar("Result")


class EngineListener(Protocol):
    """Receives what changes in an engine, in order.

    All calls come from one thread, or one event loop: the one on which the engine's cache changes.
    """

    def publish(self, events: Sequence[CacheEvent], /) -> None:
        """The cache changed like this since the last call. The events don't change any more."""
        ...

    def publish_load(self, stat: LoadStat, acknowledged: Sequence[str], /) -> None:
        """The load now; it is the first that counts the requests with these ids."""
        ...


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """What stays the same of an engine.

    Attributes:
        model_dir: the folder with the model's files, fetched and converted as they may be.
        max_model_len: tokens of prompt and output together at most.
        max_prompt_tokens: tokens of a prompt at most.
        num_blocks: blocks of its KV cache.
        device, dtype: where the model runs, and the number format of weights and KV cache.
        kernels: the name of what computes.
    """

    model_dir: str
    max_model_len: int
    max_prompt_tokens: int
    num_blocks: int
    device: str
    dtype: str
    kernels: str


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What may change of an engine while it lives.

    Attributes:
        unavailable: why no request can be served now; None: they can. It may end by itself.
        partial_cache: why the cache may hold more than was published; None: all of it was published.
        foreign_events: how another engine's events are followed, with counts of what could not be used, for
            people to read; None: the engine's events are our own, or there are none.
    """

    unavailable: str | None = None
    partial_cache: str | None = None
    foreign_events: Mapping[str, object] | None = None


class AdmittedRequest(Protocol):
    """One admission's output: a chunk for each sample that a step adds to; iterate it once.

    It ends when every sample has ended. Leaving it early aborts nothing: `abort` does.

    Raises (while iterating):
        RequestError: the request is refused, can't be computed, or the engine has stopped.
    """

    def __aiter__(self) -> AsyncIterator[TokenChunk]: ...

    async def __anext__(self) -> TokenChunk: ...

    def abort(self) -> None:
        """Forget the request, all of its samples, and free its blocks; does nothing once it has ended.

        Its iteration ends after the chunks that were delivered already. Another request with the same id is
        left alone.
        """
        ...


class RankEngine(Protocol):
    """The engine of one rank: token ids in, token ids and cache events out."""

    @property
    def description(self) -> EngineDescription:
        """What stays the same."""
        ...

    @property
    def status(self) -> EngineStatus:
        """What may change, as it is now."""
        ...

    @property
    def load(self) -> LoadStat:
        """The load, as last reported."""
        ...

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that a new prompt could hit, as of the last load report."""
        ...

    def renumber(self, dp_rank: int) -> None:
        """From now on the rank has this number, in logs and load reports."""
        ...

    def start(self, listener: EngineListener | None) -> None:
        """Begin to work, on the running event loop; None publishes nothing."""
        ...

    def stop(self) -> None:
        """End after the current step. Requests that are live fail; a second call does nothing."""
        ...

    def check_health(self) -> None:
        """
        Raises:
            EngineFailedError: the engine has stopped, or is about to.
        """
        ...

    async def prepare(self, params: SamplingParams) -> None:
        """Do what `admit` may need long for, so that no step waits for it.

        Raises:
            InvalidRequestError: the structured output that `params` ask for doesn't compile.
        """
        ...

    def admit(self, request: GenerateRequest) -> AdmittedRequest:
        """Let a request wait for its turn. A refused one, too, is acknowledged with the next load report.

        Raises:
            EngineFailedError: the engine has stopped.
        """
        ...

    def content(self, read: Callable[[Sequence[CachedBlock]], Result]) -> Future[Result]:
        """What `read` makes of everything that a new prompt could hit, parents before children.

        `read` is called where the listener is: after all events that led to this content were published, and
        before any later one. May be called from any thread, also while the event loop is busy or closed.

        Raises (at once, or as the future's result):
            EngineFailedError: the engine has stopped.
        """
        ...

    async def reset_cache(self) -> bool:
        """Forget all cached blocks, and publish that. Whether it was done: some engines do so only when idle.

        Raises:
            EngineFailedError: the engine has stopped, or can't do it.
        """
        ...
