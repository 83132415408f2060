"""How a request's output is read, whatever shape its answer has: samples as text and parts, and the usage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from app.api.openai.responses import Usage
from app.generation import TokenChunk
from app.text.output.parts import OutputParser, Part
from app.text.text_stream import TextStream


class SampleReader:
    """Turns one sample's token chunks into text, and the text into parts: what is said, thought and called.

    Args:
        text: makes text of tokens.
        parser: finds the parts.
    """

    def __init__(self, text: TextStream, parser: OutputParser) -> None:
        self._text = text
        self._parser = parser

    def take(self, chunk: TokenChunk) -> tuple[str, list[Part]]:
        """The text and the parts that are certain after `chunk`, at the end all of them."""
        is_over = chunk.finish_reason is not None
        text = "".join(map(self._text.push, chunk.token_ids))
        if is_over:
            text += self._text.flush()
        parts = self._parser.push(text)
        return text, [*parts, *self._parser.flush()] if is_over else parts


class ChunkStream(Protocol):
    """The output of a request of one prompt or several; iterate it once, and always cancel it afterwards."""

    @property
    def rank(self) -> int:
        """The rank that began."""
        ...

    def __aiter__(self) -> AsyncIterator[TokenChunk]:
        """Its chunks. Raises `RequestError` where it can't go on."""
        ...

    def cancel(self) -> None:
        """Abort what hasn't ended."""
        ...


class UsageCounter:
    """Counts the tokens of all samples, and each prompt once.

    Args:
        prompt_of: the number of the prompt that a sample answers; by default there is one.
    """

    def __init__(self, prompt_of: Callable[[int], int] = lambda index: 0) -> None:
        self._prompt_of = prompt_of
        self._num_tokens = 0
        self._prompts: dict[int, tuple[int, int]] = {}
        """By its number, a prompt's tokens and how many of them were cached."""

    def take(self, chunk: TokenChunk) -> None:
        """Count a chunk."""
        self._num_tokens += len(chunk.token_ids)
        self._prompts[self._prompt_of(chunk.index)] = (chunk.num_prompt_tokens, chunk.num_cached_tokens)

    @property
    def usage(self) -> Usage:
        """The counts so far."""
        prompts = self._prompts.values()
        num_prompt_tokens, num_cached_tokens = (sum(each[place] for each in prompts) for place in (0, 1))
        return Usage(num_prompt_tokens, num_cached_tokens, self._num_tokens)
