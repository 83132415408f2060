"""The requests of the traffic: a seed's, of every API and every option that a resumed answer must keep.

Some are `comparable`: greedy or seeded, so that every answer to one must have the same tokens, whatever
happens while it is computed. They are few, and asked again and again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Api = Literal["chat", "text", "native"]
Leaving = Literal["at_once", "waiting", "streaming"]
"""When a client disconnects: before anything came, after a moment, or in the middle of the answer."""

TENANT_HEADER = "x-tenant"
PATHS: Mapping[Api, str] = {
    "chat": "/v1/chat/completions",
    "text": "/v1/completions",
    "native": "/generate",
}
TOKEN_IDS = range(1000, 40_000)
TENANTS = ("red", "green", "blue")
WORDS = ("the", "a", "of", "river", "house", "seven", "light", "under", "walks", "blue", "stone", "again")
COMPARABLE_SHARE = 0.5
ABORTING_SHARE = 0.2
OTHER_NAMES = ("plain", "plain", "prefix", "prefix", "long_prompt", "samples", "grammar", "native")
"""Of requests that aren't comparable."""
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 12},
        "kind": {"enum": ["small", "large"]},
    },
    "required": ["name", "sizes", "kind"],
}


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        name: what is special about it; of a comparable one unique.
        api: the endpoint.
        body, headers: what is sent.
        comparable: whether every answer must have the same tokens.
        leaves: when its client disconnects, if it does.
        patience_s: of a client that leaves while it waits: for how long it does.
        max_events: of a client that leaves in the middle: after how many events.
    """

    name: str
    api: Api
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    comparable: bool = False
    leaves: Leaving | None = None
    patience_s: float = 0.0
    max_events: int = 0

    @property
    def path(self) -> str:
        """Where it is sent."""
        return PATHS[self.api]

    @property
    def payload(self) -> Mapping[str, Any]:
        """What is sent. Streams of OpenAI's APIs are asked for their usage."""
        wants_usage = self.streams and self.api != "native"
        return {**self.body, "stream_options": {"include_usage": True}} if wants_usage else self.body

    @property
    def streams(self) -> bool:
        """Whether the answer comes as events."""
        return bool(self.body.get("stream"))


def comparable_asks(seed: int, rounds: int) -> list[Ask]:
    """The comparable requests: `rounds` of every kind."""
    rng = random.Random(f"comparable {seed}")
    return [
        replace(make(rng), name=f"{name}-{number}", comparable=True, headers=_headers(rng))
        for number in range(rounds)
        for name, make in _COMPARABLE.items()
    ]


class Asks:
    """An endless mix of requests.

    Args:
        seed: of everything random.
        comparable: those that are asked again and again.
    """

    def __init__(self, seed: int, comparable: list[Ask]) -> None:
        self._rng = random.Random(f"traffic {seed}")
        self._comparable = comparable
        self._prefixes = [_tokens(self._rng, 200) for _ in range(6)]

    def draw(self) -> Ask:
        """The next request."""
        rng = self._rng
        if self._comparable and rng.random() < COMPARABLE_SHARE:
            return rng.choice(self._comparable)
        name = rng.choice(OTHER_NAMES)
        ask = replace(self._ask(name), name=name, headers=_headers(rng))
        return self._leaving(ask) if rng.random() < ABORTING_SHARE else ask

    def _ask(self, name: str) -> Ask:
        rng = self._rng
        sampling = {"temperature": 1.0, "max_tokens": rng.randrange(1, 120), "ignore_eos": True}
        streams = {"stream": rng.random() < 0.6}
        match name:
            case "prefix":
                prompt = rng.choice(self._prefixes) + _tokens(rng, rng.randrange(1, 60))
            case "long_prompt":
                prompt = _tokens(rng, rng.randrange(600, 1200))
            case "grammar":
                return _grammar(rng)
            case "native":
                return _native(rng)
            case _:
                prompt = _tokens(rng, rng.randrange(1, 80))
        samples = {"n": rng.randrange(2, 4)} if name == "samples" else {}
        return Ask("", "text", {"prompt": prompt} | sampling | streams | samples)

    def _leaving(self, ask: Ask) -> Ask:
        rng = self._rng
        leaves: Leaving = rng.choice(("at_once", "waiting", *(("streaming",) if ask.streams else ())))
        patience_s = rng.uniform(0, 0.02 if leaves == "at_once" else 1.0)
        return replace(ask, leaves=leaves, patience_s=patience_s, max_events=rng.randrange(1, 40))


def _tokens(rng: random.Random, count: int) -> list[int]:
    return rng.choices(TOKEN_IDS, k=count)


def _text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(WORDS, k=num_words))


def _headers(rng: random.Random) -> dict[str, str]:
    tenant = {TENANT_HEADER: rng.choice(TENANTS)}
    return tenant if rng.random() < 0.5 else tenant | {"x-session-id": f"session-{rng.randrange(12)}"}


def _greedy(rng: random.Random) -> Ask:
    return Ask("", "text", _seeded_body(rng) | {"temperature": 0, "stream": True})


def _seeded(rng: random.Random) -> Ask:
    return Ask("", "text", _seeded_body(rng) | {"stream": True})


def _whole(rng: random.Random) -> Ask:
    return Ask("", "text", _seeded_body(rng))


def _penalties(rng: random.Random) -> Ask:
    penalties = {"frequency_penalty": 0.4, "presence_penalty": 0.3, "repetition_penalty": 1.1}
    return Ask("", "text", _seeded_body(rng) | penalties | {"logit_bias": {"260": 4}, "stream": True})


def _stop(rng: random.Random) -> Ask:
    stops = {"stop": ["z", "ly", "10"], "min_tokens": 60, "stop_token_ids": [28]}
    return Ask("", "text", _seeded_body(rng) | stops | {"stream": True})


def _logprobs(rng: random.Random) -> Ask:
    return Ask("", "text", _seeded_body(rng) | {"temperature": 0, "logprobs": 2, "stream": True})


def _samples(rng: random.Random) -> Ask:
    return Ask("", "text", _seeded_body(rng) | {"n": 3, "stream": True})


def _long_prompt(rng: random.Random) -> Ask:
    long = {"prompt": _tokens(rng, 1200), "max_tokens": 80}
    return Ask("", "text", _seeded_body(rng) | long | {"stream": True})


def _grammar(rng: random.Random) -> Ask:
    schema = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
    body = {"seed": rng.randrange(2**31), "temperature": 1.0, "max_tokens": 160, "response_format": schema}
    return Ask("", "chat", body | _messages(rng) | {"stream": rng.random() < 0.7})


def _chat(rng: random.Random) -> Ask:
    body = {"seed": rng.randrange(2**31), "temperature": 0.8, "top_p": 0.95, "max_tokens": 150}
    return Ask("", "chat", body | _messages(rng) | {"logprobs": True, "stream": True})


def _native(rng: random.Random) -> Ask:
    sampling = {
        "max_new_tokens": rng.randrange(60, 200),
        "sampling_seed": rng.randrange(2**31),
        "min_p": 0.01,
        "presence_penalty": 0.2,
        "ignore_eos": True,
    }
    body = {"input_ids": _tokens(rng, 50), "sampling_params": sampling, "return_logprob": True}
    stream = {"stream": True, "incremental_streaming_output": rng.random() < 0.5}
    return Ask("", "native", body | (stream if rng.random() < 0.7 else {}))


def _seeded_body(rng: random.Random) -> dict[str, Any]:
    return {
        "prompt": _tokens(rng, rng.randrange(4, 60)),
        "temperature": 1.0,
        "seed": rng.randrange(2**31),
        "max_tokens": rng.randrange(80, 220),
        "ignore_eos": True,
    }


def _messages(rng: random.Random) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": _text(rng, rng.randrange(3, 30))}]}


_COMPARABLE: Mapping[str, Callable[[random.Random], Ask]] = {
    "greedy": _greedy,
    "seeded": _seeded,
    "whole": _whole,
    "penalties": _penalties,
    "stop": _stop,
    "logprobs": _logprobs,
    "samples": _samples,
    "long_prompt": _long_prompt,
    "grammar": _grammar,
    "chat": _chat,
    "native": _native,
}
