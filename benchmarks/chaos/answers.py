"""Whole answers, put together from what came: events of a stream, or a body, of any API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.chaos.requests import Api

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """One of the samples of an answer.

    Attributes:
        text: all of it.
        tokens: ids or names, where the API tells them.
        finish_reason: why it ended; None: it has not.
    """

    text: str = ""
    tokens: tuple[int | str, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        id: by which a router knows its decisions.
        samples: by their numbers.
        num_tokens: how many output tokens its usage counts.
    """

    id: str
    samples: tuple[Sample, ...]
    num_tokens: int

    @property
    def is_whole(self) -> bool:
        """Whether every sample has ended."""
        return bool(self.samples) and all(sample.finish_reason is not None for sample in self.samples)


def difference(expected: Answer, got: Answer) -> str | None:
    """Where two answers to the same request part, in words; None: they are the same."""
    if len(expected.samples) != len(got.samples):
        return f"{len(got.samples)} samples, not {len(expected.samples)}"
    for number, (one, other) in enumerate(zip(expected.samples, got.samples, strict=True)):
        if one.tokens != other.tokens:
            same = _num_same(one.tokens, other.tokens)
            return f"sample {number}: tokens part at {same} of {len(one.tokens)}"
        if one.text != other.text:
            same = _num_same(tuple(one.text), tuple(other.text))
            return f"sample {number}: text parts at character {same} of {len(one.text)}"
        if one.finish_reason != other.finish_reason:
            return f"sample {number}: finish reason {other.finish_reason}, not {one.finish_reason}"
    if expected.num_tokens != got.num_tokens:
        return f"usage counts {got.num_tokens} tokens, not {expected.num_tokens}"
    return None


class AnswerParts:
    """An answer while it comes.

    Args:
        api: whose shape it has.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._id = ""
        self._num_tokens = 0
        self._samples: dict[int, Sample] = {}
        self._native_tokens: dict[int, int] = {}

    def take(self, part: Json | list[Json]) -> None:
        """An event, or a whole body."""
        if self._api == "native":
            samples = part if isinstance(part, list) else [part]
            for number, sample in enumerate(samples):
                self._take_native(sample.get("index", number), sample)
        elif not isinstance(part, list):
            self._take_openai(part)

    @property
    def answer(self) -> Answer:
        """What has come so far."""
        samples = tuple(sample for _, sample in sorted(self._samples.items()))
        return Answer(self._id, samples, self._num_tokens or sum(self._native_tokens.values()))

    def _take_openai(self, part: Json) -> None:
        self._id = part.get("id") or self._id
        if part.get("usage"):
            self._num_tokens = part["usage"]["completion_tokens"]
        for choice in part["choices"]:
            said = choice.get("delta") or choice.get("message") or choice
            text = said.get("content") if self._api == "chat" else said.get("text")
            tokens = _openai_tokens(choice.get("logprobs"))
            self._add(choice["index"], text or "", tokens, choice["finish_reason"])

    def _take_native(self, index: int, sample: Json) -> None:
        meta = sample["meta_info"]
        self._id = meta["request_id"]
        self._native_tokens[index] = meta["completion_tokens"]
        tokens: tuple[int, ...] = tuple(sample["output_ids"])
        is_all_so_far = len(tokens) == meta["completion_tokens"]
        if is_all_so_far:
            self._samples[index] = Sample()
        self._add(index, sample["text"], tokens, meta["finish_reason"] and meta["finish_reason"]["type"])

    def _add(self, index: int, text: str, tokens: tuple[int | str, ...], finish_reason: str | None) -> None:
        before = self._samples.get(index, Sample())
        reason = finish_reason or before.finish_reason
        self._samples[index] = Sample(before.text + text, before.tokens + tokens, reason)


def _openai_tokens(logprobs: Json | None) -> tuple[str, ...]:
    if not logprobs:
        return ()
    if "tokens" in logprobs:
        return tuple(logprobs["tokens"])
    return tuple(entry["token"] for entry in logprobs["content"] or ())


def _num_same(one: tuple[object, ...], other: tuple[object, ...]) -> int:
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )
