"""Finds the reasons of a choice's misses, block by block, from what the ranks hold and what was seen before.

    prompt's blocks   cached │ another rank holds them │ being computed, evicted, lost │ never seen │ tail
                      0      depth                     at                              unseen       end

A hash names its block and all blocks before it. So "was seen" turns false once along a prompt, and is found
by bisection; what was seen is looked up block by block, by operations that run in C.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec

from app.events.following.sync_status import CREDITED
from app.routing.decisions.decision import Decision, Prompt
from app.routing.index.prefix_index import PrefixIndex
from app.routing.membership import Positions
from app.routing.misses.computing import Choice, Computing, ComputingRequests
from app.routing.misses.miss import Miss, Reason
from app.routing.misses.prompt_memory import PromptMemory, SeenPrompt
from app.routing.misses.removals import Removal, Removals
from app.routing.rank_view import ROWS


class Findings(msgspec.Struct, eq=False):
    """What was found of one choice.

    Attributes:
        block_size: tokens of a block.
        misses: in the prompt's order, to its end.
        unseen: the first block that was never seen; the number of blocks that may be cached if all were.
        new: which of `misses` is `new`; None if none is.
        has_parted: whether one is `diverged`.
        parted_from: a prompt with the same blocks before that one which went on otherwise, if one is known.
        seen: the prompt as it is remembered now; None if it has no new block.
    """

    block_size: int
    misses: list[Miss]
    unseen: int
    new: int | None
    has_parted: bool
    parted_from: SeenPrompt | None
    seen: SeenPrompt | None


class MissFinder:
    """Finds reasons, and remembers each prompt for the next ones.

    Args:
        index: what the ranks hold.
        removals: what they held.
        memory: the prompts that were seen; written to.
        computing: the requests without a first token; written to.
    """

    def __init__(
        self, index: PrefixIndex, removals: Removals, memory: PromptMemory, computing: ComputingRequests
    ) -> None:
        self._index = index
        self._removals = removals
        self._memory = memory
        self._computing = computing

    def find(self, prompt: Prompt, decision: Decision, now: float) -> Findings:
        """Why the rest of `prompt` isn't cached where `decision` sends it; it is remembered from now on.

        To be called before anything else is chosen, as it looks at what is held now.
        """
        blocks, size = prompt.block_hashes, prompt.block_size
        depth, end = decision.cached_tokens // size, prompt.num_reusable_blocks
        runs = _Runs(size)
        at = depth
        if decision.trust == "exact":
            at = self._add_elsewhere(runs, blocks, depth, end, decision)
        else:
            runs.add("unknown", depth, end)
        unseen, last = self._known(blocks, at)
        new = parted_from = None
        went_on = False
        if decision.trust == "exact":
            known = min(unseen, end)
            if at < known:
                self._add_seen(runs, blocks, at, known, decision.rank, now)
            if known < end:
                went_on, parted_from = self._way_on(blocks, unseen, last)
                runs.add("diverged", unseen, unseen + went_on)
                if unseen + went_on < end:
                    new = len(runs.misses)
                    runs.add("new", unseen + went_on, end)
        runs.misses.append(Miss("tail", end * size, prompt.num_tokens - end * size))
        if at == end < len(blocks) and self._index.holders(blocks[end]):
            at += 1  # the block of the last token, which is held but computed again
        seen = self._remember((prompt.request_id, prompt.choice_seq), blocks, at, unseen, decision.rank, now)
        return Findings(size, runs.misses, min(unseen, end), new, went_on, parted_from, seen)

    def learn(self, choice: Choice, blocks: Sequence[int], rank: int, now: float) -> SeenPrompt | None:
        """Remember a prompt that another router has chosen for."""
        held = bisect_left(range(len(blocks)), True, key=lambda each: not self._index.holders(blocks[each]))
        unseen, _ = self._known(blocks, held)
        return self._remember(choice, blocks, held, unseen, rank, now)

    def _known(self, blocks: Sequence[int], held: int) -> tuple[int, SeenPrompt | None]:
        """How many first blocks were seen, and the prompt that added the last of them, if it is known."""
        while held < len(blocks) and self._index.holders(blocks[held]):
            held += 1
        known, last = self._memory.known(blocks, held)
        if known == len(blocks) or blocks[known] not in self._removals:
            return known, last
        # No prompt, but an answer that was computed and evicted; or a prompt that is forgotten.
        places = range(known, len(blocks))
        return known + bisect_left(places, True, key=lambda each: blocks[each] not in self._removals), None

    def _remember(
        self, choice: Choice, blocks: Sequence[int], at: int, unseen: int, rank: int, now: float
    ) -> SeenPrompt | None:
        if at < len(blocks):
            self._computing.begin(choice, Computing(blocks, at, rank, now))
        return self._memory.add(blocks, unseen, now) if unseen < len(blocks) else None

    def _add_elsewhere(
        self, runs: _Runs, blocks: Sequence[int], depth: int, end: int, decision: Decision
    ) -> int:
        """The blocks from `depth` on that some other rank holds; returns the first that none does."""
        views, rank = decision.views, decision.rank
        most = views.tiers[0][1] // runs.block_size if views.tiers else 0
        if most > depth:
            positions = views.tiers[0][0]
            position = _first(positions)
            runs.add(
                "elsewhere",
                depth,
                most,
                rank=views.rank.item(position),
                waiting_tokens=int(views.counts[ROWS.waiting_tokens].item(position)),
                num_requests=int(views.counts[ROWS.num_requests].item(position)),
            )
            depth = most
        if depth < end and (others := self._index.holders(blocks[depth]) & ~(1 << rank)):
            others &= ~_credited(decision)
            held = bisect_left(
                range(depth, end), True, key=lambda each: not self._index.holders(blocks[each]) & others
            )
            runs.add("elsewhere", depth, depth + held, rank=(others & -others).bit_length() - 1)
            depth += held
        return depth

    def _add_seen(self, runs: _Runs, blocks: Sequence[int], at: int, end: int, rank: int, now: float) -> None:
        """Blocks from `at` to before `end`, which were seen, but which no rank holds that could give them."""
        if (found := self._computing.find(blocks, at, now)) is not None:
            computing_rank, computed = found
            runs.add("computing", at, min(computed, end), rank=computing_rank)
            at = min(computed, end)
        first = at
        for removal, group in groupby(map(self._removals.last, blocks[first:end])):
            start, at = at, at + len(list(group))
            if removal is not None:
                runs.add(removal.cause, start, at, **self._times(blocks, start, removal, now))
            elif runs.misses and self._index.holders(blocks[start]) >> rank & 1:
                # The chosen rank has kept it, but not the blocks before it: it shares their reason.
                runs.extend(at)
            else:
                runs.add("unknown", start, at)

    def _times(self, blocks: Sequence[int], at: int, removal: Removal, now: float) -> dict[str, Any]:
        _, prompt = self._memory.known(blocks[: at + 1], at)
        age_s = removal.at - prompt.at if prompt is not None and prompt.at <= removal.at else None
        return {"rank": removal.rank, "ago_s": now - removal.at, "age_s": age_s}

    def _way_on(
        self, blocks: Sequence[int], unseen: int, last: SeenPrompt | None
    ) -> tuple[bool, SeenPrompt | None]:
        """Whether the blocks before the first unseen one have gone on otherwise, and with which prompt."""
        if not unseen:
            return False, None
        way = self._memory.way_on(blocks, unseen, last)
        return way is not None or self._index.goes_on(blocks[unseen - 1]), way


class _Runs:
    """Misses in the making, in order; neighbours with one reason and rank are one."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.misses: list[Miss] = []

    def add(self, reason: Reason, start: int, end: int, *, rank: int | None = None, **details: Any) -> None:
        """Blocks from `start` to before `end`."""
        if start >= end:
            return
        last = self.misses[-1] if self.misses else None
        if last is not None and (last.reason, last.rank) == (reason, rank):
            self.extend(end)
        else:
            size = self.block_size
            self.misses.append(Miss(reason, start * size, (end - start) * size, rank, **details))

    def extend(self, end: int) -> None:
        """The last run goes on to before `end`."""
        last = self.misses[-1]
        self.misses[-1] = last.cut(last.start, end * self.block_size)


def _credited(decision: Decision) -> int:
    """Bit set of the ranks whose blocks are in the decision's tiers, as far as they can be used."""
    views = decision.views
    return sum(
        1 << rank for rank, trust in zip(views.rank.tolist(), views.trust, strict=True) if trust in CREDITED
    )


def _first(positions: Positions) -> int:
    if isinstance(positions, slice):
        return 0  # there is no other slice than all of them
    return positions if isinstance(positions, int) else positions.item(0)
