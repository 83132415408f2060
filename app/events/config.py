"""What the ranks publish and where, as the deployment's `kv_events_config` says it.

It is a document of SGLang's and vLLM's, so what they take is taken: their spellings, numbers in strings, and,
with a warning, keys that nothing here reads. What is nearly a key of ours is refused: it may mean `curve`.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from app.errors import ConfigError
from app.events.curve import CurveConfig
from app.events.schema import ACK_TOPIC, Format
from app.settings.base import Settings
from app.validation import one_of, validate

WHERE = "kv_events_config"
"""What errors and warnings call it."""
_SIMILARITY = 0.75
"""Of a key to one of ours, from which on it is taken for a misspelling: one slip in four letters."""
_SIMILARITY_OF_SHORT = 0.6


def _no_truth(value: Any) -> Any:
    """A bool is an int to pydantic."""
    if isinstance(value, bool):
        raise ValueError("allowed are integers")
    return value


def _publisher_by_default(before: dict[str, Any]) -> Literal["zmq", "null"]:
    """As vLLM has it; `before` has the fields above it."""
    return "zmq" if before.get("enable_kv_cache_events") else "null"


QueueLength = Annotated[int, BeforeValidator(_no_truth), Field(ge=1, le=2**31 - 1)]
"""As long as ZMQ, which counts in C ints, lets a queue be."""


class KvEventsConfig(Settings):
    """What is inside `kv_events_config`: SGLang's and vLLM's keys; from `token_ids` on, kvbeacon's own."""

    enable_kv_cache_events: bool | None = Field(
        None,
        description="vLLM's switch: false publishes nothing, true publishes where `publisher` is not set.",
    )
    publisher: Literal["zmq", "null"] = Field(
        default_factory=_publisher_by_default, description="`null` publishes nothing."
    )
    endpoint: str = Field("tcp://127.0.0.1:5557", description="Events of rank 0; rank r has the port + r.")
    replay_endpoint: str | None = Field(None, description="Replay of rank 0; null: no replay.")
    topic: str = Field("", description="First frame of every batch.")
    buffer_steps: QueueLength = Field(10_000, description="Batches kept for replay.")
    hwm: QueueLength = Field(100_000, description="Batches queued for one slow subscriber, then dropped.")
    max_queue_size: QueueLength = Field(
        100_000, description="Batches queued between engine and publisher, then dropped."
    )
    bind: Literal["auto", "bind", "connect"] = Field(
        "auto",
        description="`auto` binds wildcard and loopback hosts, interfaces, ipc, inproc, and connects others; "
        "true is `bind`, false is `connect`.",
    )
    format: Format = Field("map", description="`array` for consumers of SGLang up to 0.5.13; `default`: map.")
    load_reports: bool = Field(True, description="Publish load reports on a port range of their own.")
    load_publish_endpoint: str | None = Field(
        None,
        description="Load reports of rank 0, always bound; null: as far behind events and replay as those "
        "are apart.",
    )
    token_ids: bool = Field(
        True, description="False keeps prompts out of the stream: `token_ids` of stored blocks are empty."
    )
    load_topic: str = Field("load", min_length=1, description="First frame of every load report.")
    replay_framing: Literal["topic", "plain"] = Field(
        "topic", description="`plain` leaves the topic out of replies, as SGLang 0.5.13 does."
    )
    curve: CurveConfig | None = Field(
        None, description="Key files for encryption; null: any client that reaches a port can read it."
    )

    @field_validator("publisher", mode="before")
    @classmethod
    def _none_is_the_default(cls, value: Any, info: ValidationInfo) -> Any:
        return _publisher_by_default(info.data) if value is None else value

    @field_validator("bind", mode="before")
    @classmethod
    def _sglangs_words(cls, value: Any) -> Any:
        words = {"none": "auto", "true": "bind", "false": "connect"}
        return words.get(str(value).lower(), value) if isinstance(value, bool | str | None) else value

    @field_validator("format", mode="before")
    @classmethod
    def _default_is_a_map(cls, value: Any) -> Any:
        return "map" if value == "default" else value

    @field_validator("load_publish_endpoint")
    @classmethod
    def _is_wanted(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("load_reports") is False:
            raise ValueError("load_reports is false")
        return value

    @field_validator("topic")
    @classmethod
    def _can_be_sent(cls, value: str) -> str:
        value.encode()  # a lone surrogate, which JSON can write, is a ValueError here
        return value

    @field_validator("load_topic")
    @classmethod
    def _not_the_ack_topic(cls, value: str) -> str:
        if value.encode() == ACK_TOPIC:
            raise ValueError(f"{value!r} is the topic of acknowledgements")
        return value


def read_config(values: Mapping[str, Any]) -> tuple[KvEventsConfig, list[str]]:
    """The settings in `values`, and a warning for each key that nothing here reads.

    Raises:
        ConfigError: a wrong value, or a key that is nearly one of ours.
    """
    known = KvEventsConfig.model_fields
    unread = [key for key in values if key not in known]
    if faults := [fault for key in unread if (fault := _misspelling(key))]:
        raise ConfigError("; ".join(faults))
    config = validate(KvEventsConfig, {key: values[key] for key in values if key in known}, where=WHERE)
    return config, [
        f"{WHERE}.{key!s:.80}: unknown key, ignored; known are {', '.join(known)}" for key in unread
    ]


def _misspelling(key: str) -> str | None:
    cutoff = _SIMILARITY if len(key) > len("hwm") else _SIMILARITY_OF_SHORT
    meant = get_close_matches(_plain(key), KvEventsConfig.model_fields, n=2, cutoff=cutoff)
    return f"{WHERE}.{key:.80}: unknown key; did you mean {one_of(meant)}?" if meant else None


def _plain(key: str) -> str:
    return key.strip().lower().replace("-", "_")
