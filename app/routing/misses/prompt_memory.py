"""Prompts that were seen lately: how far another prompt is known, and how it went on there.

A block's hash names all blocks before it too, so a prompt is kept from the first block on that no other has.

    prompt 1   a b c d e f          a … f
    prompt 2   a b c x y            x y, and a way on after c
    prompt 3   a b c d e f g        g, and a way on after f

Few blocks are keys: the first one that a prompt adds, and those at every `STRIDE`-th place of a prompt. From
the deepest key of a prompt that is known, blocks are compared with those of the prompt that added the key,
by bisection. So a long prompt costs little more than a short one, and the answer is exact all the same.

With content it is the other way round: equal content may be anywhere, so a prompt's pieces are all looked up,
but only up to `MAX_KEYS` of them become keys, and what is around a key is compared.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from app.text.outline import Outline

STRIDE: Final = 16
"""Blocks from one key to the next."""
MAX_KEYS: Final = 16
"""Pieces of one prompt that become keys."""


class SeenPrompt(msgspec.Struct, eq=False):
    """A prompt, from the first block on that was new.

    Attributes:
        start: how many blocks are before that.
        blocks: hashes of its full blocks from there on.
        before: the block before that; None if there is none.
        at: when it was first seen, in seconds of the caller's clock.
        first_piece: the place of the first of `pieces` among all of the prompt's.
        pieces: its content from `start` on, see `Outline.hashes`; none before it is known.
        texts: theirs, as far as texts are allowed.
        keys: of `pieces`, those that are keys.
    """

    start: int
    blocks: Sequence[int]
    before: int | None
    at: float
    first_piece: int = 0
    pieces: Sequence[int] = ()
    texts: Sequence[str] = ()
    keys: Sequence[int] = ()

    @property
    def end(self) -> int:
        """All of the prompt's full blocks."""
        return self.start + len(self.blocks)


class PromptMemory:
    """The last prompts that added at most so many blocks, and as many pieces of content, together.

    One prompt is always remembered, however long it is.

    Args:
        capacity: blocks, and pieces of content.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._prompts: deque[SeenPrompt] = deque()
        """In order."""
        self._added: dict[int, SeenPrompt] = {}
        """By key block, the prompt that added it."""
        self._ways: dict[int, SeenPrompt] = {}
        """By block, the last prompt whose added blocks come right after it."""
        self._with_content: deque[SeenPrompt] = deque()
        """Those whose content is known, in order."""
        self._contents: dict[int, SeenPrompt] = {}
        """By key piece, the last prompt that brought it."""
        self.num_blocks = 0
        self.num_pieces = 0

    def known(self, blocks: Sequence[int], held: int) -> tuple[int, SeenPrompt | None]:
        """How many first blocks of a prompt were seen, and the prompt that added the last of them.

        Args:
            blocks: the prompt's.
            held: how many of them some rank holds, and which are taken as seen.
        """
        added, size = self._added, len(blocks)
        first = -(-held // STRIDE) * STRIDE
        num = bisect_left(range(first, size, STRIDE), True, key=lambda each: blocks[each] not in added)
        for at in (first + (num - 1) * STRIDE, held):
            prompt = None
            while 0 <= at < size and (branch := added.get(blocks[at])) is not None:
                prompt, at = branch, _common_end(branch, blocks, at)
            if prompt is not None and at >= held:
                return at, prompt
        return held, None

    def way_on(self, blocks: Sequence[int], depth: int, last: SeenPrompt | None) -> SeenPrompt | None:
        """A prompt that goes on otherwise after the first `depth` blocks of this one, at least one.

        `last` is what `known` returned with this depth.
        """
        way = self._ways.get(blocks[depth - 1])
        return last if way is None and last is not None and last.end > depth else way

    def add(self, blocks: Sequence[int], depth: int, at: float) -> SeenPrompt:
        """Remember a prompt of which so many first blocks, not all of them, were seen before."""
        before = blocks[depth - 1] if depth else None
        prompt = SeenPrompt(depth, blocks[depth:], before, at)
        self._added.update(dict.fromkeys(_keys(prompt), prompt))
        if before is not None:
            self._ways[before] = prompt
        self._prompts.append(prompt)
        self.num_blocks += len(prompt.blocks)
        while self.num_blocks > self._capacity and len(self._prompts) > 1:
            self._forget(self._prompts.popleft())
        return prompt

    def add_content(self, prompt: SeenPrompt, outline: Outline, block_size: int) -> None:
        """The content of a prompt that was added; only once."""
        first = bisect_right(outline.ends, prompt.start * block_size)
        prompt.first_piece, prompt.pieces = first, outline.hashes[first:]
        prompt.texts = outline.texts[first:]
        prompt.keys = prompt.pieces[:: -(-len(prompt.pieces) // MAX_KEYS) or 1]
        self._contents.update(dict.fromkeys(prompt.keys, prompt))
        self._with_content.append(prompt)
        self.num_pieces += len(prompt.pieces)
        while self.num_pieces > self._capacity and len(self._with_content) > 1:
            self._forget_content(self._with_content.popleft())

    def known_content(self, pieces: Sequence[int], first: int) -> Iterator[tuple[int, int, SeenPrompt]]:
        """Runs of a prompt's pieces, from the `first` one on, that a prompt had in the same order.

        Yields:
            The first one's place, the place after the last one, and that prompt; in order, apart from each
            other.
        """
        found = list(map(self._contents.get, pieces[first:]))
        if not any(found):
            return
        end = first
        for place, prompt in enumerate(found, first):
            if prompt is not None and place >= end:
                there = prompt.pieces.index(pieces[place])
                before = num_equal(pieces[end:place][::-1], prompt.pieces[:there][::-1])
                start, end = place - before, place + num_equal(pieces[place:], prompt.pieces[there:])
                yield start, end, prompt

    def _forget(self, prompt: SeenPrompt) -> None:
        self.num_blocks -= len(prompt.blocks)
        _drop(self._added, _keys(prompt), prompt)
        if prompt.before is not None:
            _drop(self._ways, (prompt.before,), prompt)

    def _forget_content(self, prompt: SeenPrompt) -> None:
        self.num_pieces -= len(prompt.pieces)
        _drop(self._contents, prompt.keys, prompt)
        prompt.pieces, prompt.texts, prompt.keys = (), (), ()


def num_equal(one: Sequence[object], other: Sequence[object]) -> int:
    """How many first items are equal."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_end(prompt: SeenPrompt, blocks: Sequence[int], at: int) -> int:
    """Up to where `blocks` are the prompt's, which has the block `at`."""
    added, start = prompt.blocks, prompt.start
    end = min(prompt.end, len(blocks))
    if added[end - 1 - start] == blocks[end - 1]:  # a hash names all blocks before it
        return end
    places = range(at, end)
    return at + bisect_left(places, True, key=lambda each: added[each - start] != blocks[each])


def _keys(prompt: SeenPrompt) -> Sequence[int]:
    first = -prompt.start % STRIDE
    return [prompt.blocks[0], *prompt.blocks[first::STRIDE]]


def _drop(table: dict[int, SeenPrompt], keys: Iterable[int], prompt: SeenPrompt) -> None:
    """Remove those of `keys` that stand for `prompt`."""
    for key in keys:
        if table.get(key) is prompt:
            del table[key]
