"""The relay beside a naive foreign cache and beside the router's index: all three hold the same blocks."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.relay.relay import Relay
from app.routing.index.index_writer import IndexWriter
from app.routing.index.prefix_index import PrefixIndex
from tests.support.engine.foreign_cache import FULL_ATTENTION, ForeignCache, Prompt
from tests.support.examples import examples

BLOCK = 4
MAX_TOKENS = 24
STEPS = 60
GROUPS: list[dict[int | None, str | None]] = [
    {None: None},
    {0: "full_attention"},
    {0: "full_attention", 1: "sliding_window"},
    {0: "full_attention", 1: "full_attention", 2: "mamba"},
]
SALT = "tenant a"


class Run:
    """Random stores, copies, evictions and clears of one foreign cache, and the relay of its events."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        chained = rng.random() < 0.5
        block_size = rng.choice([1, 2, 3, 4, 4, 4, 6, 8])
        is_named = chained and block_size == BLOCK
        groups = GROUPS[0] if chained else rng.choice(GROUPS)
        self.cache = ForeignCache(block_size, chained, groups, with_tokens=not is_named or rng.random() < 0.5)
        self.relay = Relay(BLOCK, hashes="chained" if chained else "opaque", source="a model")
        if rng.random() < 0.5:
            self.relay.add_salt(SALT)
            self.cache.known_salts.add(SALT)
        if is_named or not chained:
            self.cache.known_salts.add(SALT)
        self.as_arrays = not chained and rng.random() < 0.3
        self.prompts = [self._prompt() for _ in range(6)]
        self.index = PrefixIndex()
        self.writer = IndexWriter(self.index, 0)

    def _prompt(self) -> Prompt:
        rng = self.rng
        # Pieces of a few tokens, so that prompts share prefixes of all lengths.
        tokens = [bit for _ in range(MAX_TOKENS // 3) for bit in (0, 0, int(rng.random() < 0.2))]
        salt = SALT if rng.random() < 0.3 else None
        if self.cache.chained:
            return Prompt(tuple(tokens), salt)
        lora = "adapter" if rng.random() < 0.1 else None
        return Prompt(tuple(tokens), salt, lora, "an image" if rng.random() < 0.2 else None)

    def step(self) -> None:
        """Change the cache somehow."""
        rng, cache = self.rng, self.cache
        draw = rng.random()
        if draw < 0.02:
            cache.clear()
        elif draw < 0.1:
            plain = Prompt(rng.choice(self.prompts).tokens)
            cache.store(plain, 0, 2, medium="CPU")
            cache.remove_elsewhere(plain, "CPU")
        elif draw < 0.5 and cache.entries:
            held = list(cache.entries)
            cache.remove(rng.sample(held, min(len(held), rng.randint(1, 4))))
        else:
            num_blocks = MAX_TOKENS // cache.block_size
            start = 0 if rng.random() < 0.6 else rng.randrange(num_blocks)
            cache.store(rng.choice(self.prompts), start, rng.randint(start + 1, num_blocks))

    def apply(self) -> None:
        """Pass on one batch."""
        self.writer.apply(self.relay.apply(self.cache.payload(as_arrays=self.as_arrays)))
        self.relay.check_integrity()
        self.index.check_integrity()
        assert self.index.blocks_of(0) == {block.hash for block in self.relay.content}


@given(seed=st.integers(0, 2**32))
@settings(max_examples=examples(100), deadline=None)
def test_content_and_index_are_what_a_prompt_can_hit(seed: int) -> None:
    run = Run(seed)
    for _ in range(STEPS):
        for _ in range(run.rng.randint(1, 2)):
            run.step()
        run.apply()
        assert {block.hash: block.parent_hash for block in run.relay.content} == run.cache.hits(BLOCK)
        counters = run.relay.counters
        assert not counters.faults, counters.last_fault
        assert counters.unknown_removed == 0
        followed = [group for group, _ in run.cache.entries if run.cache.groups[group] in FULL_ATTENTION]
        assert counters.num_foreign_blocks == len(followed)
        assert counters.num_blocks == len(run.relay.content)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=examples(50), deadline=None)
def test_after_lost_events_nothing_is_credited_that_is_not_there(seed: int) -> None:
    run = Run(seed)
    run.cache.groups = {0: "full_attention"}
    for _ in range(STEPS):
        run.step()
        if run.rng.random() < 0.1:  # a gap, after which a feed begins again
            run.cache.payload()
            run.writer.apply(run.relay.clear())
        run.apply()
        assert {block.hash for block in run.relay.content} <= run.cache.hits(BLOCK).keys()
