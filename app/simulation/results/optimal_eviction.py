"""The most that one cache of a given size can have of its requests' blocks, knowing all that are to come.

    requests    |m=0 |m=1 |m=2 |m=3 |
    block a      ●─────────●              used by requests 0 and 2: it is a hit of 2 if it is kept beyond 1
    block b           ●─────────●         beyond 2

A request's blocks are all in the cache when it is served. So a use of a block is a hit exactly if the block
was kept from its use before, beyond the requests in between; and beyond request m at most `num_blocks` less
m's own blocks can be kept. From the first request to the last, where too many are kept, those are dropped
whose next use is the latest, of equal ones the deepest in their prompts. No choice has more hits:

- Take a choice that has the most hits of all and agrees with this one before m. If at m it keeps a block x
  that is dropped here, it has dropped a block y that is kept here, whose next use is no later. With y kept in
  place of x from m on, it has as many hits, and room wherever it had room before, as y leaves sooner. So it
  can be made to agree at m too, and in the end everywhere.
- A block's parent is used whenever the block is, so its next use is no later: what is kept is closed under
  parents, and every hit follows hits.

Source: L. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966, for blocks of one
size and the latest next use; here a request is many blocks that are needed at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

from app.simulation.traces.request import SimulatedRequest

_NEVER: Final = -1


def optimal_hits(requests: Sequence[SimulatedRequest], num_blocks: int, block_size: int) -> list[int]:
    """How many blocks each request finds where all together find the most, at least 0.

    Args:
        requests: in the order in which the cache serves them. The block of the last token counts as no hit:
            it has to be computed whatever is cached.
        num_blocks: of the cache; at least any request's.
        block_size: tokens of a block.
    """
    prompts = _prefixes(requests)
    next_uses = _next_uses(prompts, [(each.num_tokens - 1) // block_size for each in requests])
    hits = [0] * len(prompts)
    kept: set[tuple[int, int]] = set()
    """(next use, name) of each; children have higher names than their parents."""
    latest: list[tuple[int, int]] = []
    """A heap of these, negated, the latest use and the deepest block first; some are in `kept` no more."""
    for position, prompt in enumerate(prompts):
        for name in prompt:
            if (position, name) in kept:
                kept.remove((position, name))
                hits[position] += 1
        while len(kept) > num_blocks - len(prompt):
            next_use, name = heapq.heappop(latest)
            kept.discard((-next_use, -name))
        for name, next_use in zip(prompt, next_uses[position], strict=True):
            if next_use != _NEVER:
                kept.add((next_use, name))
                heapq.heappush(latest, (-next_use, -name))
    return hits


def _prefixes(requests: Sequence[SimulatedRequest]) -> list[list[int]]:
    """The prompts with a name for each block that no block after another parent has."""
    names: dict[tuple[int, int], int] = {}
    prompts = []
    for request in requests:
        name, prompt = -1, []
        for block in request.block_ids:
            name = names.setdefault((name, block), len(names))
            prompt.append(name)
        prompts.append(prompt)
    return prompts


def _next_uses(prompts: Sequence[Sequence[int]], num_reusable: Sequence[int]) -> list[list[int]]:
    """For each block of each prompt the position of the next that can have it as a hit.

    `_NEVER` where the next one that uses it can't, which has it in the cache afterwards in any case.
    """
    coming: dict[int, int] = {}
    next_uses = []
    for position in range(len(prompts) - 1, -1, -1):
        prompt = prompts[position]
        next_uses.append([coming.get(name, _NEVER) for name in prompt])
        for depth, name in enumerate(prompt):
            coming[name] = position if depth < num_reusable[position] else _NEVER
    return next_uses[::-1]
