"""Why prompt tokens weren't cached where their request went: reasons, and a request's misses as runs.

prompt   │ cached │ elsewhere │ evicted │ diverged │ volatile     │ new │ tail │
         0        └─ the misses: neighbours, in the prompt's order, up to its end ┘
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, get_args

import msgspec

Json = dict[str, Any]
Reason = Literal[
    "new", "diverged", "volatile", "evicted", "lost", "elsewhere", "computing", "unknown", "tail"
]
"""Why a token is missed:

- new: its block, which a hash names together with all blocks before it, was never seen, nor its content.
- diverged: it is in the block where the prompt parts from another one, which has the same blocks before it.
- volatile: its block's content was seen, behind another beginning: something before it changes.
- evicted: a rank that had it needed the space, and no other rank has it.
- lost: it went with a rank's death, reset or redeploy.
- elsewhere: a rank that holds it was passed over.
- computing: a request that is on its way, or waits, will have it computed.
- unknown: the rank's cache isn't known exactly, or isn't what it has published, or what became of the block
  isn't known any more.
- tail: behind the last block that could be cached: less than a block, or the block of the last token, which
  is always computed.
"""
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
PLACED: Final = ("diverged", "volatile")
"""Reasons that have a place in the prompt where something changed."""


class Miss(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Neighbouring tokens that are missed for one reason.

    Attributes:
        reason: why.
        start: the first one's place in the prompt.
        num_tokens: how many, at least 1.
        rank: which one evicted, lost, holds or computes them.
        ago_s: evicted, lost: seconds from that to the choice, of the first block.
        age_s: evicted, lost: seconds to that since the block was first seen, where that is remembered.
        waiting_tokens, num_requests: elsewhere: how busy that rank was; None if it could take no requests.
    """

    reason: Reason
    start: int
    num_tokens: int
    rank: int | None = None
    ago_s: float | None = None
    age_s: float | None = None
    waiting_tokens: int | None = None
    num_requests: int | None = None

    @property
    def end(self) -> int:
        """The place after the last one."""
        return self.start + self.num_tokens

    def cut(self, start: int, end: int, reason: Reason | None = None) -> Miss:
        """The part of it in these places, with another reason if one is given."""
        return msgspec.structs.replace(
            self, start=start, num_tokens=end - start, reason=reason or self.reason
        )


class Change(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Where a prompt parts from an earlier one.

    Attributes:
        token: its place: exact to the block, or to the word where the texts are known.
        message: which of the request's messages it is in; None if it isn't in any, or that isn't known.
        role: that message's.
        line: of the message, from 0, that the changed piece begins with, or with texts the line itself.
        before, after: the words of the earlier prompt and of this one; only where texts are allowed.
        around: the text before and behind the words of this one; only where texts are allowed.
    """

    token: int
    message: int | None = None
    role: str | None = None
    line: int | None = None
    before: str | None = None
    after: str | None = None
    around: tuple[str, str] | None = None


def settled(misses: Sequence[Miss], num_tokens: int, cached_tokens: int) -> list[Miss]:
    """The misses of a prompt of which its rank had so many tokens cached, whatever was expected.

    What it had beyond that isn't missed, such as blocks that another request computed meanwhile. What it had
    published and hadn't is missed for an unknown reason.
    """
    expected = misses[0].start if misses else num_tokens
    if cached_tokens == expected:
        return list(misses)
    if cached_tokens < expected:
        return [Miss("unknown", cached_tokens, expected - cached_tokens), *misses]
    left = (each for each in misses if each.end > cached_tokens)
    return [each if each.start >= cached_tokens else each.cut(cached_tokens, each.end) for each in left]


def tokens_by_reason(misses: Iterable[Miss]) -> Counter[Reason]:
    """How many tokens are missed for each reason."""
    counts: Counter[Reason] = Counter()
    for each in misses:
        counts[each.reason] += each.num_tokens
    return counts
