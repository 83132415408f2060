"""Events of a stream as Anthropic's API has them: each is named by its type."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


def sse(event: Mapping[str, object]) -> bytes:
    """One server-sent event; `type` is its name."""
    return f"event: {event['type']}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"
