"""How a request's output is read, whatever shape its answer has: samples as text and parts, and the usage."""

from __future__ import annotations

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


class UsageCounter:
    """Counts the tokens of all samples, and the prompt once."""

    def __init__(self) -> None:
        self._num_tokens = 0
        self.usage = Usage(0, 0, 0)

    def take(self, chunk: TokenChunk) -> None:
        """Count a chunk."""
        self._num_tokens += len(chunk.token_ids)
        self.usage = Usage(chunk.num_prompt_tokens, chunk.num_cached_tokens, self._num_tokens)
