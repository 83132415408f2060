"""Requests without a first token, and the blocks that they will have computed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

import msgspec

from app.routing.misses.prompt_memory import num_equal

MAX_COMPUTING_S = 600.0
"""A request of which nothing was heard for so long isn't taken to be computing."""
MAX_COMPUTING = 8_192
"""Requests that are kept."""
MAX_LOOKED_AT = 256
"""The last ones, among which a prompt's blocks are looked for."""
Choice = tuple[str, int]
"""A request's id and the number of the choice for it."""


class Computing(msgspec.Struct, frozen=True, eq=False):
    """One request's prompt on its rank.

    Attributes:
        blocks: its full blocks.
        start: how many of them some rank held.
        rank: where it was sent.
        at: when, in seconds of the caller's clock.
    """

    blocks: Sequence[int]
    start: int
    rank: int
    at: float


class ComputingRequests:
    """Those without a first token, as far as is known here."""

    def __init__(self) -> None:
        self._requests: OrderedDict[Choice, Computing] = OrderedDict()

    def begin(self, choice: Choice, computing: Computing) -> None:
        """A request was sent to a rank."""
        self._requests[choice] = computing
        if len(self._requests) > MAX_COMPUTING:
            self._requests.popitem(last=False)

    def end(self, choice: Choice) -> None:
        """It has its first token, or won't have one there."""
        self._requests.pop(choice, None)

    def find(self, blocks: Sequence[int], at: int, now: float) -> tuple[int, int] | None:
        """The rank that is computing the block `at` of a prompt, and the place after the last it computes."""
        block = blocks[at]
        for each in islice(reversed(self._requests.values()), MAX_LOOKED_AT):
            is_alive = now - each.at < MAX_COMPUTING_S
            if each.start <= at < len(each.blocks) and each.blocks[at] == block and is_alive:
                return each.rank, at + num_equal(blocks[at:], each.blocks[at:])
        return None
