"""Grammars and text streams over a tiny model's 512 tokens, in place of a real tokenizer's."""

from __future__ import annotations

from collections.abc import Sequence

from app.generation import StructuredOutput
from app.text.text_stream import TextStream

ANYTHING = StructuredOutput("grammar", "odd then even", "structured_outputs.grammar")
CHOICE = StructuredOutput("choice", '["a"]', "structured_outputs.choice")


class OddThenEven:
    """A grammar: odd tokens and even ones in turn, until 12 were taken."""

    def __init__(self, wanted: StructuredOutput) -> None:
        self._num_taken = 0

    def allowed_tokens(self) -> bytes:
        return bytes(token_id % 2 != self._num_taken % 2 for token_id in range(512))

    def accept(self, token_id: int) -> None:
        assert token_id % 2 != self._num_taken % 2
        self._num_taken += 1

    @property
    def is_finished(self) -> bool:
        return self._num_taken == 12


class OneToken:
    """A grammar that lets token 7 through and is finished."""

    def __init__(self) -> None:
        self.is_finished = False

    def allowed_tokens(self) -> bytes:
        return bytes(token_id == 7 for token_id in range(512))

    def accept(self, token_id: int) -> None:
        self.is_finished = True


def spelling(stop: Sequence[str], min_tokens: int, skip_special_tokens: bool) -> TextStream:
    """A text stream in which the text of token 12 is "12 "."""
    return TextStream(
        lambda token_ids: "".join(f"{each} " for each in token_ids), lambda token_id: False, stop, min_tokens
    )
