"""What a prompt's content adds to its blocks: what of it was seen behind another beginning, and what changed.

blocks that were never seen   │ diverged │ volatile │ volatile │ new      │ volatile │
pieces of content             │ other  │ seen           │ seen   │ other  │ seen       │
"""

from __future__ import annotations

import re
from bisect import bisect_right

import numpy as np

from app.routing.misses.finder import Findings
from app.routing.misses.miss import Change, Miss
from app.routing.misses.prompt_memory import PromptMemory, SeenPrompt, num_equal
from app.text.outline import Outline

MAX_WORD_CHARS = 80
"""Of the words that differ."""
AROUND_CHARS = 40
"""Of the text before and behind them."""
_WORDS = re.compile(r"\S+")


def add_content(findings: Findings, outline: Outline | None, memory: PromptMemory) -> Change | None:
    """Tell volatile blocks from others, and find what changed; the content is remembered from now on.

    Args:
        findings: changed where blocks are volatile.
        outline: the prompt's content; None if it isn't known.
        memory: the contents of the prompts before; written to.

    Returns:
        Where the prompt parts from an earlier one, if it does.
    """
    origin = change = None
    if outline is not None and findings.new is not None:
        origin = _add_volatile(findings, findings.new, outline, memory)
    if origin is not None or findings.has_parted:
        change = _change(findings, outline, findings.parted_from or origin)
    if findings.seen is not None and outline is not None:
        memory.add_content(findings.seen, outline, findings.block_size)
    return change


def _add_volatile(
    findings: Findings, position: int, outline: Outline, memory: PromptMemory
) -> SeenPrompt | None:
    """Of the new miss at this position; returns the prompt that had the first volatile block, if one did."""
    size, new = findings.block_size, findings.misses[position]
    parts: list[Miss] = []
    at, origin = new.start, None
    for first, after, prompt in memory.known_content(outline.hashes, bisect_right(outline.ends, at)):
        start = -(-max(_start(outline, first), at) // size) * size
        end = min(outline.ends[after - 1], new.end) // size * size
        if start < end:
            if at < start:
                parts.append(new.cut(at, start))
            parts.append(new.cut(start, end, "volatile"))
            at, origin = end, origin or prompt
    if not parts:
        return None
    if at < new.end:
        parts.append(new.cut(at, new.end))
    findings.misses[position : position + 1] = parts
    return origin


def _change(findings: Findings, outline: Outline | None, other: SeenPrompt | None) -> Change:
    block, size = findings.unseen * findings.block_size, findings.block_size
    if outline is None or not outline.ends:
        return Change(block)
    if other is not None:
        equal = num_equal(outline.hashes[other.first_piece :], other.pieces)
        piece = other.first_piece + equal
        if piece < len(outline.ends) and outline.ends[piece] > block > _start(outline, piece) - size:
            if outline.texts and equal < len(other.texts):
                return _worded(outline, piece, other.texts[equal])
            return Change(max(block, _start(outline, piece)), *_place(outline, piece))
    # Without the other prompt's content: what this one has at the block.
    return Change(block, *_place(outline, min(bisect_right(outline.ends, block), len(outline.ends) - 1)))


def _worded(outline: Outline, piece: int, before: str) -> Change:
    """The change to the word: the first one in which a piece's text isn't what it was before."""
    text = outline.texts[piece]
    at = num_equal(text, before)
    while at and not text[at - 1].isspace():
        at -= 1
    word, was = _WORDS.match(text, at), _WORDS.match(before, at)
    end = at if word is None else word.end()
    return Change(
        _token_at(outline, len("".join((*outline.texts[:piece], text[:at])).encode(errors="replace"))),
        *_place(outline, piece, text.count("\n", 0, at)),
        before="" if was is None else was[0][:MAX_WORD_CHARS],
        after="" if word is None else word[0][:MAX_WORD_CHARS],
        around=(text[max(0, at - AROUND_CHARS) : at], text[end : end + AROUND_CHARS]),
    )


def _token_at(outline: Outline, byte: int) -> int:
    """The token that has this byte of the text."""
    ends = np.frombuffer(outline.token_sizes, np.uint8).cumsum()
    return min(int(ends.searchsorted(byte, side="right")), len(ends) - 1)


def _place(outline: Outline, piece: int, num_lines: int = 0) -> tuple[int | None, str | None, int | None]:
    """Message, role and line: `num_lines` behind the one in which a piece begins."""
    if not outline.lines:
        return None, None, None
    line = max(0, outline.lines[piece] + num_lines)
    if not outline.roles:
        return None, None, line
    message = outline.messages[piece]
    if message >= len(outline.roles):
        return None, None, None
    return message, outline.roles[message], line


def _start(outline: Outline, piece: int) -> int:
    return outline.ends[piece - 1] if piece else 0
