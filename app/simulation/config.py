"""What is simulated: ranks, and how soon the routers learn of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import yaml
from pydantic import Field

from app.errors import ConfigError
from app.settings.base import MAX_DP_SIZE, PositiveFloat, PositiveInt, Settings
from app.settings.engine import Eviction
from app.validation import validate

Seconds = Annotated[float, Field(ge=0)]


class DecodeConfig(Settings):
    """Ranks that batch: every step computes one token of each running request and a chunk of one prompt.

        step_s = fixed_s + running requests * per_request_s + prompt tokens of the step / prefill rate

    So decoding slows prefill down, and prefill decoding.
    """

    fixed_s: PositiveFloat = Field(0.008, description="Seconds of every step: reading the weights.")
    per_request_s: Seconds = Field(0.0002, description="Seconds of a step for each running request.")
    chunk_tokens: PositiveInt = Field(2048, description="Prompt tokens of one step at most.")
    max_running_requests: PositiveInt = Field(256, description="Requests of one step at most.")


class RankConfig(Settings):
    """One rank; all are alike."""

    prefill_tokens_per_s: PositiveFloat = Field(8000.0, description="Uncached prompt tokens per second.")
    block_size: PositiveInt = Field(512, description="Tokens of one block.")
    num_blocks: PositiveInt = Field(3000, description="Blocks of the cache.")
    eviction: Eviction = Field("lru", description="Which of them go first, as `engine.cache.eviction`.")
    decode: DecodeConfig | None = Field(
        None,
        description="null: the simplest model. A rank is a first-in-first-out queue of prompts, nothing is "
        "decoded, and a prompt's blocks are cached, and held by no request, from its arrival on.",
    )


class FeedConfig(Settings):
    """How routers learn of the ranks, and of each other. All zeros: they know everything at once."""

    event_delay_s: Seconds = Field(0.0, description="From a cache's change to the router's index.")
    event_loss: float = Field(0.0, ge=0, lt=1, description="Share of the batches of events that are lost.")
    recovery_s: Seconds = Field(
        0.05,
        description="From a lost batch to its replay; the rank is syncing meanwhile.",
    )
    load_interval_s: Seconds = Field(0.0, description="Between two load reports of a busy rank; 0: always.")
    load_delay_s: Seconds = Field(0.0, description="From a load report to the router's load book.")
    peer_delay_s: Seconds | None = Field(
        None, description="From one router's reservation to the others; null: they never receive it."
    )


class ClusterConfig(Settings):
    """Everything that a simulation needs besides its requests and its policy."""

    ranks: Annotated[int, Field(ge=1, le=MAX_DP_SIZE, strict=True)] = Field(8, description="Ranks.")
    routers: PositiveInt = Field(1, description="Routers, which requests go to in turn.")
    rank: RankConfig = RankConfig()
    feed: FeedConfig = FeedConfig()
    seed: int = Field(0, description="Of everything that is left to chance.")


MOONCAKE: Final = ClusterConfig()
"""The simplest model, for Mooncake's traces: 8 ranks of 8,000 tokens/s and 3,000 blocks of 512 tokens."""

DELAYED: Final = ClusterConfig(feed=FeedConfig(event_delay_s=0.01, load_interval_s=0.1, load_delay_s=0.01))
"""The same ranks, of which the router learns as of real ones: events after 10 ms, load ten times a second."""


def read_cluster(file: Path) -> ClusterConfig:
    """The simulated cluster that `file` describes; what it leaves out is as in the preset `mooncake`.

    Raises:
        ConfigError: the file can't be read, isn't YAML, or a field in it is wrong.
    """
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {error}") from None
    return validate(ClusterConfig, {} if values is None else values, where=str(file))
