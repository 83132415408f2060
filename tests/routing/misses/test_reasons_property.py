"""Reasons of random choices are those of a model that remembers everything, and sum to all tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest

from app.events.following.sync_status import Trust
from app.routing.core import RoutingCore
from app.routing.decisions.decision import Decision, Prompt
from app.routing.decisions.decision_log import Outcome
from app.routing.misses.miss import Miss
from app.routing.misses.miss_book import MissBook
from tests.support.routing.cores import new_core, new_prompt, set_routable

BLOCK = 4
NUM_RANKS = 3
Chain = tuple[int, ...]
"""A prompt's first blocks by their contents: its name in the model."""


@dataclass
class Model:
    """Everything that ever was: by chains, not by hashes."""

    seen: set[Chain] = field(default_factory=set)
    held: list[set[Chain]] = field(default_factory=lambda: [set() for _ in range(NUM_RANKS)])
    dropped: dict[Chain, str] = field(default_factory=dict)
    computing: dict[str, tuple[Chain, int]] = field(default_factory=dict)
    """By request, prompts without a first token and how many blocks of each were held; in order."""

    def reasons(self, chain: Chain, depth: int, end: int, rank: int, trust: Trust) -> list[str]:
        """One for each block from `depth` to before `end`."""
        if trust != "exact":
            return ["unknown"] * (end - depth)
        reasons: list[str] = []
        others = [self.run(chain[:end], each) for each in range(NUM_RANKS) if each != rank]
        at = max(depth, *others)
        reasons += ["elsewhere"] * (at - depth)
        unseen = next((i for i in range(at, end) if chain[: i + 1] not in self.seen), end)
        computed = self.computed(chain, at) if at < unseen else at
        for i in range(at, unseen):
            name = chain[: i + 1]
            if i < computed:
                reasons.append("computing")
            elif name in self.dropped:
                reasons.append(self.dropped[name])
            else:
                reasons.append(reasons[-1] if reasons and name in self.held[rank] else "unknown")
        if unseen < end:
            before = chain[:unseen]
            parts = unseen > 0 and any(
                len(each) == unseen + 1 and each[:unseen] == before for each in self.seen
            )
            reasons += ["diverged" if parts else "new"] + ["new"] * (end - unseen - 1)
        return reasons

    def run(self, chain: Chain, rank: int) -> int:
        """How many first blocks `rank` holds."""
        return next((i for i in range(len(chain)) if chain[: i + 1] not in self.held[rank]), len(chain))

    def computed(self, chain: Chain, at: int) -> int:
        """Up to where the last request that computes block `at` computes this prompt."""
        for other, start in reversed(self.computing.values()):
            if start <= at < len(other) and other[: at + 1] == chain[: at + 1]:
                pairs = zip(chain, other, strict=False)
                return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chain), len(other)))
        return at


class World:
    """A router's core and book beside the model."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.model = Model()
        self.core: RoutingCore = new_core(dp_size=NUM_RANKS)
        self.now = 0.0
        self.book = MissBook(self.core.index, 10**9, 1, lambda: self.now)
        self.open: list[tuple[Chain, Prompt, Decision]] = []
        self.num_prompts = 0
        self.hashes: dict[Chain, int] = {}
        self.chains: list[Chain] = []

    def some_chain(self) -> Chain:
        """Mostly a beginning of an earlier prompt, with something behind it."""
        rng = self.rng
        before: Chain = ()
        if self.chains and rng.random() < 0.85:
            earlier = rng.choice(self.chains)
            before = earlier[: rng.randrange(len(earlier) + 1)]
        return before + tuple(rng.randrange(3) for _ in range(rng.choice((0, 1, 1, 2, 5, 40)))) or (0,)

    def choose(self) -> None:
        chain = self.some_chain()
        self.chains.append(chain)
        self.num_prompts += 1
        tail = self.rng.randrange(BLOCK)
        tokens = [block * 10 + i for block in chain for i in range(BLOCK)] + [7] * tail
        prompt = new_prompt(str(self.num_prompts), tokens, BLOCK)
        self.hashes.update({chain[: i + 1]: each for i, each in enumerate(prompt.block_hashes)})
        trusts: dict[int, Trust] = dict.fromkeys(range(NUM_RANKS), "exact")
        if self.rng.random() < 0.1:
            trusts[self.rng.randrange(NUM_RANKS)] = "stale"
        set_routable(self.core, trusts)
        pinned = self.rng.choice((None, *range(NUM_RANKS)))
        decision = self.core.choose(prompt, self.now, pinned_rank=pinned)
        case = self.book.find(prompt, decision)
        self.check(chain, prompt, decision, case.misses)
        # A rank that isn't known exactly is taken to compute all of it.
        held = max(self.model.run(chain, each) for each in range(NUM_RANKS)) * (decision.trust == "exact")
        self.model.seen |= {chain[: i + 1] for i in range(len(chain))}
        if held < len(chain):
            self.model.computing[prompt.request_id] = (chain, held)
        self.open.append((chain, prompt, decision))

    def check(
        self,
        chain: Chain,
        prompt: Prompt,
        decision: Decision,
        misses: list[Miss],
    ) -> None:
        assert sum(each.num_tokens for each in misses) == decision.uncached_tokens
        assert misses[0].start == decision.cached_tokens
        assert [each.start for each in misses[1:]] == [each.end for each in misses[:-1]]
        assert misses[-1].reason == "tail"
        found = [
            each.reason for each in misses if each.reason != "tail" for _ in range(each.num_tokens // BLOCK)
        ]
        depth, end = decision.cached_tokens // BLOCK, prompt.num_reusable_blocks
        assert found == self.model.reasons(chain, depth, end, decision.rank, decision.trust), (chain, depth)

    def answer(self) -> None:
        """The first token of some request: its rank holds the prompt."""
        if not self.open:
            return
        chain, prompt, decision = self.open.pop(self.rng.randrange(len(self.open)))
        rank, model = decision.rank, self.model
        held = model.run(chain, rank)
        new = prompt.block_hashes[held:]
        if new:
            self.core.index.store(rank, new, prompt.block_hashes[held - 1] if held else None)
        model.held[rank] |= {chain[: i + 1] for i in range(len(chain))}
        cached = decision.cached_tokens
        self.book.record_outcome(Outcome(prompt.request_id, rank, "answering", cached_tokens=cached))
        model.computing.pop(prompt.request_id, None)

    def evict(self) -> None:
        rank = self.rng.randrange(NUM_RANKS)
        held = self.model.held[rank]
        parents = {each[:-1] for each in held}
        leaves = sorted(held - parents)
        if not leaves:
            return
        leaf = self.rng.choice(leaves)
        going: list[Chain] = []
        while leaf and leaf in held and len(going) < self.rng.choice((1, 3, 30)):
            if any(len(o) == len(leaf) + 1 and o[: len(leaf)] == leaf for o in held):
                break
            held.remove(leaf)
            going.append(leaf)
            leaf = leaf[:-1]
        self.core.index.remove(rank, [self.hashes[each] for each in going])
        self.model.dropped.update(dict.fromkeys(going, "evicted"))

    def clear(self) -> None:
        rank = self.rng.randrange(NUM_RANKS)
        self.core.index.clear(rank)
        self.model.dropped.update(dict.fromkeys(self.model.held[rank], "lost"))
        self.model.held[rank].clear()


@pytest.mark.parametrize("seed", range(12))
def test_reasons_are_those_of_a_model_that_remembers_everything(seed: int) -> None:
    world = World(seed)
    for _ in range(250):
        world.now += 1.0
        draw = world.rng.random()
        if draw < 0.45:
            world.choose()
        elif draw < 0.8:
            world.answer()
        elif draw < 0.99:
            world.evict()
        else:
            world.clear()
