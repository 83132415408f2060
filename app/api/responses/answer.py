"""A response, whole and as the events of a stream."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from app.api.openai.logprobs import Spell
from app.api.openai.responses import Usage
from app.api.responses.open_items import Json
from app.api.responses.tools import Offer
from app.errors import RequestError
from app.text.output.formats import PLAIN_OUTPUT, OutputFormat


@dataclass(frozen=True)
class ResponseUsage:
    """Token counts: those of any answer, and of the output those that were thoughts."""

    usage: Usage
    reasoning_tokens: int = 0

    def as_json(self) -> Json:
        """OpenAI's usage object."""
        usage = self.usage
        cached = {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0}
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {**cached, **usage.missed_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }


@dataclass(frozen=True)
class ResponseShape:
    """How one response is written, and what every form of it repeats.

    Attributes:
        request_id, model: its own.
        echo: what it repeats of the request.
        is_stored: whether a later request can go on from it.
        offers: the tools, by the names that the model knows.
        output: finds calls and thoughts in the text.
        packs_thoughts: see `OutputItems`.
        spell: shows tokens where the answer has logprobs; None if it has none.
        created: seconds since 1970.
    """

    request_id: str
    model: str
    echo: Json
    is_stored: bool = False
    offers: Mapping[str, Offer] = field(default_factory=dict)
    output: OutputFormat = PLAIN_OUTPUT
    packs_thoughts: bool = False
    spell: Spell | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def response_id(self) -> str:
        """The response's id."""
        return f"resp_{self.request_id}"

    def begun(self) -> Json:
        """The response before its end."""
        return self._response("in_progress", [])

    def whole(self, items: Sequence[Json], usage: ResponseUsage, finish_reason: str | None) -> Json:
        """The response at its end: `incomplete` if the limit cut it."""
        is_cut = finish_reason == "length"
        response = self._response("incomplete" if is_cut else "completed", items)
        details = {"reason": "max_output_tokens"} if is_cut else None
        ended = {"completed_at": None if is_cut else int(time.time())}
        return {**response, **ended, "incomplete_details": details, "usage": usage.as_json()}

    def failed(self, items: Sequence[Json], error: RequestError) -> Json:
        """The response when it can't go on."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        reason = {"code": code, "message": error.message, "type": error.type, "param": error.param}
        return {**self._response("failed", items), "error": reason}

    def _response(self, status: str, items: Sequence[Json]) -> Json:
        return {
            "id": self.response_id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": list(items),
            "service_tier": "default",
            "store": self.is_stored,
            "truncation": "disabled",
            "usage": None,
            **self.echo,
        }


class EventWriter:
    """Numbers a stream's events, and writes them."""

    def __init__(self) -> None:
        self._num_events = 0

    def written(self, event: Json) -> bytes:
        """The event as a server-sent one."""
        numbered = {**event, "sequence_number": self._num_events}
        self._num_events += 1
        name: str = event["type"]
        return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(numbered) + b"\n\n"
