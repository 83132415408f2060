"""Which ranks there are, how many, and what each of them gets of its machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from app.settings.base import MAX_DP_SIZE, PerNode, PositiveFloat, PositiveInt, Settings
from app.settings.key_text import read_key
from app.validation import field_fault


class RemoteWorker(Settings):
    """A server whose DP ranks are followed and served from."""

    url: str = Field(min_length=1, description="Where its HTTP is: http://host:port, with a path or without.")
    dp_size: PositiveInt = Field(
        1, le=MAX_DP_SIZE, description="Its DP ranks, each one of ours: a worker that is down can't say it."
    )
    api_key_file: Path | None = Field(
        None,
        description="File with the key that the worker wants, on every node that may hold a rank; null: it "
        "wants none. A kvbeacon's operator's key, if its cache is to be emptied (`adopt: flush`).",
    )

    def read_api_key(self) -> str | None:
        """The key; None: the worker wants none. Raises `ConfigError` if the file has none."""
        where = "remote_ranks.workers.api_key_file"
        return None if self.api_key_file is None else read_key(where, self.api_key_file)

    @field_validator("api_key_file")
    @classmethod
    def _is_the_same_from_everywhere(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("an absolute path is needed: ranks on many nodes read it")
        return value

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
