"""Text out of token ids, one at a time: never half a character, never a stop string.

    token ids ──▶ Detokenizer ──▶ whole characters ──▶ StopMatcher ──▶ text for the client

Each part holds back what could still change: the detokenizer the bytes of an unfinished character, the
matcher text that may be the beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from app.errors import InvalidRequestError

Decode = Callable[[list[int]], str]

_REPLACEMENT = "\ufffd"
# An unfinished UTF-8 character has at most 3 of its 4 bytes, so it spans at most 3 tokens; decoders show it
# as 1 to 3 replacement characters.
_MAX_UNFINISHED = 3
_MAX_PENDING = 16  # tokens; beyond this the window is shortened even though it ends in invalid bytes


class Detokenizer:
    """Decodes a window of the last tokens, so that a stream of n tokens costs O(n).

        ids:   … | context | pending …
        text:  … released  | released up to `num_released`, then held back

    Both borders of `context` lie between characters, so `pending` adds the same text to it as to the whole.
    The context is needed because some decoders treat a text's first token differently.

    For byte-level tokenizers the pieces add up to the decoding of all ids, invalid UTF-8 included. Decoders
    with byte fallback judge a whole run of bytes at once: there the pieces add up if the bytes are valid.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._pending: list[int] = []
        self._num_released = 0

    def push(self, token_id: int) -> str:
        """The characters that have become certain with this token."""
        self._pending.append(token_id)
        text = self._text_after(self._context, self._pending)
        num_certain = self._num_certain(text)
        certain = text[self._num_released : num_certain]
        self._num_released = max(self._num_released, num_certain)
        if text and num_certain == len(text):
            self._move_border(len(self._pending), len(text))
        elif len(self._pending) > _MAX_PENDING:
            self._shorten(text)
        return certain

    def flush(self) -> str:
        """What was held back, invalid bytes as replacement characters. The stream is over."""
        held = self._text_after(self._context, self._pending)[self._num_released :]
        self._context, self._pending, self._num_released = [], [], 0
        return held

    def _text_after(self, context: list[int], token_ids: list[int]) -> str:
        return self._decode(context + token_ids)[len(self._decode(context)) :]

    def _num_certain(self, text: str) -> int:
        """The number of characters at the start of the pending `text` that no later token can change."""
        if not text.endswith(_REPLACEMENT):
            return len(text)
        if len(self._pending) <= _MAX_UNFINISHED:
            # None is: with byte fallback an unfinished character changes its neighbours too.
            return 0
        num_unfinished = 1
        while num_unfinished < _MAX_UNFINISHED and text.endswith(_REPLACEMENT, 0, len(text) - num_unfinished):
            num_unfinished += 1
        return len(text) - num_unfinished

    def _shorten(self, text: str) -> None:
        """In a long run of invalid bytes, move the border right, to the last place between two characters.

        A border inside a character is recognised by its halves, which decode to other text than the whole.
        """
        for size in range(len(self._pending) - 1, 0, -1):
            head, tail = self._pending[:size], self._pending[size:]
            head_text = self._text_after(self._context, head)
            if 0 < len(head_text) <= self._num_released and head_text + self._text_after(head, tail) == text:
                self._move_border(size, len(head_text))
                return

    def _move_border(self, num_tokens: int, num_chars: int) -> None:
        self._context, self._pending = self._pending[:num_tokens], self._pending[num_tokens:]
        self._num_released -= num_chars


class StopMatcher:
    """Finds the stop string that is complete first; of several that end at the same place, the longest.

    The choice doesn't depend on how the text is cut into pieces. `keep`: the text has the stop string too.
    """

    def __init__(self, stop: Sequence[str], keep: bool = False) -> None:
        if not all(stop):
            raise InvalidRequestError(
                "stop holds an empty string; give strings of 1 or more characters", param="stop"
            )
        self._stop = tuple(stop)
        self._keep = keep
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that can't be part of a stop string; nothing after a match."""
        if self.matched is not None:
            return ""
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._stop if stop in self._held]
        if found:
            start, self.matched = min(found, key=lambda match: (match[0] + len(match[1]), match[0]))
            end = start + len(self.matched) if self._keep else start
            released, self._held = self._held[:end], ""
            return released
        num_free = len(self._held) - self._num_suspect()
        released, self._held = self._held[:num_free], self._held[num_free:]
        return released

    def flush(self) -> str:
        """What was held back. The stream is over."""
        released, self._held = self._held, ""
        return released

    def _num_suspect(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        for start in range(max(0, len(self._held) - self._longest_beginning()), len(self._held)):
            end = self._held[start:]
            if any(stop.startswith(end) for stop in self._stop):
                return len(end)
        return 0

    def _longest_beginning(self) -> int:
        return max((len(stop) for stop in self._stop), default=1) - 1


class TextStream:
    """One answer's text while its tokens arrive.

    Attributes:
        matched: the stop string found, or None so far.
    """

    def __init__(
        self,
        decode: Decode,
        is_skipped: Callable[[int], bool],
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        *,
        keep_stop: bool = False,
        not_last: Collection[int] = (),
    ) -> None:
        """Start an answer.

        Args:
            decode: token ids to text.
            is_skipped: whether a token id has no text of its own (special tokens).
            stop: strings; the first one found ends the text.
            min_tokens: stop strings aren't looked for in the text of this many first tokens.
            keep_stop: whether the text has the stop string that ended it.
            not_last: tokens that have no text where they are the answer's last.

        Raises:
            InvalidRequestError: a stop string is empty.
        """
        self._is_skipped = is_skipped
        self._detokenizer = Detokenizer(decode)
        self._matcher = StopMatcher(stop, keep_stop)
        self._not_last = not_last
        self._held: int | None = None
        self._min_tokens = min_tokens
        self._num_tokens = 0

    @property
    def matched(self) -> str | None:
        return self._matcher.matched

    def push(self, token_id: int) -> str:
        """The text that may be shown after this token: possibly none; none after a stop string."""
        before, self._held = self._held, token_id if token_id in self._not_last else None
        text = "" if before is None else self._push(before)
        return text if self._held is not None else text + self._push(token_id)

    def _push(self, token_id: int) -> str:
        self._num_tokens += 1
        if self.matched is not None or self._is_skipped(token_id):
            return ""
        text = self._detokenizer.push(token_id)
        return self._matcher.push(text) if self._num_tokens > self._min_tokens else text

    def flush(self) -> str:
        """The rest of the text, at the end of the answer. May still find a stop string in it."""
        if self.matched is not None:
            return ""
        return self._matcher.push(self._detokenizer.flush()) + self._matcher.flush()
