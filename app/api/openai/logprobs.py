"""Logprobs in OpenAI's two shapes, one entry per token while an answer's tokens come.

A token that is part of a character is written as OpenAI does: `\\xf0\\x9f` in a chat, whose entries have
the bytes too, and `bytes:\\xf0\\x9f` in a text. Special tokens have entries of their own, and no bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.generation import TokenChunk, TokenLogprobs
from app.text.token_spelling import TokenSpelling

Kind = Literal["chat", "text"]
Json = dict[str, Any]
Spell = Callable[[int], TokenSpelling]


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that an answer begins with.

    Attributes:
        text: as the client sent it, or of its tokens.
        token_ids: its tokens, a beginning (BOS) that the tokenizer has added among them.
    """

    text: str
    token_ids: Sequence[int]


class AnswerLogprobs:
    """The entries of one answer."""

    def __init__(self, kind: Kind, spell: Spell) -> None:
        self._entry = self._chat_entry if kind == "chat" else self._text_entry
        self._spell = functools.cache(spell)  # the likeliest tokens are often the same ones
        self._num_chars = 0
        """Characters of which the tokens so far have at least the first byte."""

    def take(self, chunk: TokenChunk) -> list[Json]:
        """One entry per token of `chunk`, which has logprobs."""
        scored = zip(chunk.token_ids, chunk.logprobs or [], strict=True)
        return [self._entry(token_id, each.logprob, each.likeliest) for token_id, each in scored]

    def echo(self, echo: Echo, logprobs: Sequence[TokenLogprobs]) -> list[Json]:
        """One entry per token of a text's prompt. Before the first there is nothing, so it has no logprob."""
        entries = []
        for place, token_id in enumerate(echo.token_ids):
            spelling = self._spell(token_id)
            # In the text of a prompt special tokens have theirs, but for a beginning that it doesn't have.
            is_added = place == 0 and not echo.text.startswith(spelling.name)
            data = spelling.data or (b"" if is_added else spelling.name.encode())
            if place == 0:
                entry: Json = {"tokens": _text_name(spelling), "token_logprobs": None, "top_logprobs": None}
            else:
                scored = logprobs[place - 1]
                entry = self._scored_entry(token_id, scored.logprob, scored.likeliest)
            entries.append({**entry, "text_offset": self._offset(data)})
        self._num_chars = len(echo.text)
        return entries

    def _chat_entry(self, token_id: int, logprob: float, likeliest: tuple[tuple[int, float], ...]) -> Json:
        alternatives = [self._named(*each) for each in likeliest]
        return {**self._named(token_id, logprob), "top_logprobs": alternatives}

    def _named(self, token_id: int, logprob: float) -> Json:
        spelling = self._spell(token_id)
        return {"token": spelling.name, "logprob": logprob, "bytes": list(spelling.data)}

    def _text_entry(self, token_id: int, logprob: float, likeliest: tuple[tuple[int, float], ...]) -> Json:
        offset = self._offset(self._spell(token_id).data)
        return {**self._scored_entry(token_id, logprob, likeliest), "text_offset": offset}

    def _scored_entry(self, token_id: int, logprob: float, likeliest: tuple[tuple[int, float], ...]) -> Json:
        # The chosen token is among its alternatives, even where it is none of the likeliest.
        alternatives: dict[str, float] = {}
        for each, value in (*likeliest, (token_id, logprob)):
            alternatives.setdefault(_text_name(self._spell(each)), value)
        name = _text_name(self._spell(token_id))
        return {"tokens": name, "token_logprobs": logprob, "top_logprobs": alternatives}

    def _offset(self, data: bytes) -> int:
        """The place of the character that `data` begins, or goes on with."""
        continues = data[:1] and _is_continuation(data[0])
        offset = self._num_chars - 1 if continues and self._num_chars else self._num_chars
        self._num_chars += sum(not _is_continuation(byte) for byte in data)
        return offset


def joined(kind: Kind, entries: list[Json]) -> Json:
    """A choice's `logprobs` of these entries."""
    if kind == "chat":
        return {"content": entries, "refusal": None}
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [entry[name] for entry in entries] for name in names}


def _text_name(spelling: TokenSpelling) -> str:
    try:
        spelling.data.decode()
    except UnicodeDecodeError:
        return f"bytes:{spelling.name}"
    return spelling.name


def _is_continuation(byte: int) -> bool:
    """Whether the byte goes on with a character in UTF-8."""
    return byte & 0xC0 == 0x80
