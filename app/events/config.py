"""What the ranks publish and where, as the deployment's `kv_events_config` says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from app.config import Settings
from app.events.curve import CurveConfig
from app.events.schema import ACK_TOPIC, Format

QueueLength = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""As long as ZMQ, which counts in C ints, lets a queue be."""


class KvEventsConfig(Settings):
    """What is inside `kv_events_config`: SGLang's keys, and kvbeacon's own from `token_ids` on."""

    model_config = ConfigDict(strict=True)

    publisher: Literal["zmq", "null"] = Field("null", description="`null` publishes nothing.")
    endpoint: str = Field("tcp://127.0.0.1:5557", description="Events of rank 0; rank r has the port + r.")
    replay_endpoint: str | None = Field(None, description="Replay of rank 0; null: no replay.")
    topic: str = Field("", description="First frame of every batch.")
    buffer_steps: QueueLength = Field(10_000, description="Batches kept for replay.")
    hwm: QueueLength = Field(100_000, description="Batches queued for one slow subscriber, then dropped.")
    max_queue_size: QueueLength = Field(
        100_000, description="Batches queued between engine and publisher, then dropped."
    )
    token_ids: bool = Field(
        True, description="False keeps prompts out of the stream: `token_ids` of stored blocks are empty."
    )
    load_reports: bool = Field(True, description="Publish load reports on a port range of their own.")
    load_topic: str = Field("load", min_length=1, description="First frame of every load report.")
    format: Format = Field("map", description="`array` for consumers of SGLang up to 0.5.13.")
    replay_framing: Literal["topic", "plain"] = Field(
        "topic", description="`plain` leaves the topic out of replies, as SGLang 0.5.13 does."
    )
    bind: Literal["auto", "bind", "connect"] = Field(
        "auto", description="`auto` binds wildcard and loopback hosts, ipc and inproc, and connects others."
    )
    curve: CurveConfig | None = Field(
        None, description="Key files for encryption; null: any client that reaches a port can read it."
    )

    @field_validator("publisher", mode="before")
    @classmethod
    def _none_is_null(cls, value: Any) -> Any:
        return "null" if value is None else value

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
