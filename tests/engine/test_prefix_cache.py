from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from app import hashing
from app.engine.prefix_cache import BlockTable, PrefixCache
from app.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, CacheEvent

BLOCK = 4


def names(tokens: list[int], salt: str | None = None) -> list[int]:
    """Wire hashes of the full blocks of `tokens`."""
    return [hashing.wire_hash(digest) for digest in hashing.chain(tokens, BLOCK, hashing.seed(salt))]


def opened(cache: PrefixCache, tokens: list[int], salt: str | None = None) -> BlockTable:
    """A table for `tokens` with the cached prefix and new blocks for the rest, nothing committed of those."""
    table = BlockTable(hashing.seed(salt))
    table.extend_digests(tokens, BLOCK)
    cache.open(table, cache.match(table.digests))
    assert cache.grow(table, -(-len(tokens) // BLOCK))
    return table


def fill(cache: PrefixCache, tokens: list[int], salt: str | None = None) -> BlockTable:
    """As `opened`, all computed."""
    table = opened(cache, tokens, salt)
    cache.commit(table, tokens, len(tokens))
    return table


def test_consecutive_new_blocks_are_one_event_with_parent_and_tokens() -> None:
    cache = PrefixCache(8, BLOCK)
    tokens = list(range(14))
    table = opened(cache, tokens)
    cache.commit(table, tokens, 5)
    cache.commit(table, tokens, 14)
    first, second, third = names(tokens)
    assert cache.drain_events() == [
        BlockStored([first], None, [0, 1, 2, 3], BLOCK, medium="GPU"),
        BlockStored([second, third], first, list(range(4, 12)), BLOCK, medium="GPU"),
    ]
    assert cache.drain_events() == []


def test_a_prefix_is_found_only_after_it_was_computed() -> None:
    cache = PrefixCache(8, BLOCK)
    tokens = list(range(12))
    table = opened(cache, tokens)
    digests = hashing.chain(tokens, BLOCK)
    assert cache.match(digests) == 0
    cache.commit(table, tokens, 8)
    assert cache.match(digests) == 2
    assert cache.match(hashing.chain([*range(4), 9, 9, 9, 9], BLOCK)) == 1


def test_salts_keep_blocks_apart() -> None:
    cache = PrefixCache(8, BLOCK)
    fill(cache, list(range(4)), "a")
    assert cache.match(hashing.chain(list(range(4)), BLOCK)) == 0
    assert cache.match(hashing.chain(list(range(4)), BLOCK, hashing.seed("b"))) == 0
    assert cache.match(hashing.chain(list(range(4)), BLOCK, hashing.seed("a"))) == 1
    (stored,) = cache.drain_events()
    assert isinstance(stored, BlockStored)
    assert stored.parent_block_hash is None


def test_a_released_request_is_evicted_from_its_tail() -> None:
    cache = PrefixCache(4, BLOCK)
    tokens = list(range(12))
    cache.close(fill(cache, tokens))
    cache.drain_events()
    other = opened(cache, [50] * 12)
    assert cache.drain_events() == [BlockRemoved([names(tokens)[2], names(tokens)[1]], "GPU")]
    assert cache.match(hashing.chain(tokens, BLOCK)) == 1
    cache.check_integrity([other])


def test_a_hit_makes_blocks_recently_used() -> None:
    cache = PrefixCache(4, BLOCK)
    old, new = list(range(8)), [9] * 8
    cache.close(fill(cache, old))
    cache.close(fill(cache, new))
    cache.close(opened(cache, old))
    cache.close(fill(cache, [7] * 8))
    assert cache.match(hashing.chain(old, BLOCK)) == 2
    assert cache.match(hashing.chain(new, BLOCK)) == 0


def test_blocks_without_content_are_reused_before_any_is_evicted() -> None:
    cache = PrefixCache(3, BLOCK)
    cache.close(fill(cache, list(range(8))))
    cache.drain_events()
    for _ in range(3):
        cache.close(opened(cache, [1, 2, 3]))
    assert cache.drain_events() == []


def test_growing_beyond_what_is_free_changes_nothing() -> None:
    cache = PrefixCache(3, BLOCK)
    table = fill(cache, list(range(8)))
    cache.drain_events()
    assert not cache.grow(table, 4)
    assert cache.num_free_blocks == 1
    assert cache.drain_events() == []
    cache.check_integrity([table])


def test_two_requests_that_compute_the_same_block_store_it_once() -> None:
    cache = PrefixCache(8, BLOCK)
    tokens = list(range(8))
    first, second = opened(cache, tokens), opened(cache, tokens)
    cache.commit(first, tokens, 8)
    cache.drain_events()
    cache.commit(second, tokens, 8)
    assert cache.drain_events() == []
    assert second.block_ids == first.block_ids
    assert cache.num_free_blocks == 6
    cache.check_integrity([first, second])


def test_a_child_never_outlives_its_parent() -> None:
    """Two requests computed the same head at once; the one that had it cached first leaves first."""
    cache = PrefixCache(6, BLOCK)
    head = [1, 2, 3, 4]
    first, second = opened(cache, head), opened(cache, [*head, 5, 6, 7, 8])
    cache.commit(first, head, 4)
    cache.commit(second, [*head, 5, 6, 7, 8], 8)
    cache.close(first)
    cache.drain_events()
    other = opened(cache, [9] * 16)
    assert cache.drain_events() == []
    cache.check_integrity([second, other])


def test_reset_forgets_everything_and_open_tables_go_on_unseen() -> None:
    cache = PrefixCache(8, BLOCK)
    tokens = list(range(12))
    table = opened(cache, tokens)
    cache.commit(table, tokens, 4)
    cache.drain_events()
    cache.reset()
    cache.commit(table, tokens, 12)
    assert cache.drain_events() == [AllBlocksCleared()]
    assert cache.cached_blocks() == []
    cache.check_integrity([table])
    again = fill(cache, tokens)
    assert not set(again.block_ids) & set(table.block_ids)
    cache.close(table)
    cache.check_integrity([again])
    assert [block.hash for block in cache.cached_blocks()] == names(tokens)


@dataclass
class Replay:
    """A consumer of events that knows nothing but them."""

    parent_of: dict[int, int | None] = field(default_factory=dict)

    def apply(self, events: list[CacheEvent]) -> None:
        for event in events:
            match event:
                case BlockStored():
                    assert event.parent_block_hash is None or event.parent_block_hash in self.parent_of
                    assert len(event.token_ids) == len(event.block_hashes) * BLOCK
                    parent = event.parent_block_hash
                    for name in event.block_hashes:
                        assert name not in self.parent_of
                        self.parent_of[name], parent = parent, name
                case BlockRemoved():
                    for name in event.block_hashes:
                        del self.parent_of[name]
                        assert name not in self.parent_of.values()
                case AllBlocksCleared():
                    self.parent_of.clear()


Step = tuple[str, int, list[int]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "open", "commit", "commit", "close", "close", "reset"]),
        st.integers(0, 99),
        st.lists(st.integers(0, 1), max_size=5),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(1, 12))
def test_random_use_keeps_every_count_and_the_events_say_all(steps: list[Step], num_blocks: int) -> None:
    cache, replay = PrefixCache(num_blocks, BLOCK), Replay()
    tables: list[tuple[BlockTable, list[int]]] = []
    for step, number, kinds in steps:
        # Block contents are all zeros or all ones, so sequences share prefixes often.
        tokens = [kind for kind in kinds for _ in range(BLOCK)]
        if step == "open":
            table = BlockTable(hashing.ROOT)
            table.extend_digests(tokens, BLOCK)
            num_hits = cache.match(table.digests)
            assert [name in replay.parent_of for name in names(tokens)] == [
                index < num_hits for index in range(len(kinds))
            ]
            if cache.fits(table, num_hits, len(kinds)):
                cache.open(table, num_hits)
                assert cache.grow(table, len(kinds))
                tables.append((table, tokens))
        elif step == "reset":
            cache.reset()
        elif tables:
            table, tokens = tables[number % len(tables)]
            if step == "commit":
                computed = max(table.num_committed * BLOCK, number % (len(tokens) + 1))
                cache.commit(table, tokens, computed)
            else:
                tables.remove((table, tokens))
                cache.close(table)
        replay.apply(cache.drain_events())
        cache.check_integrity(table for table, _ in tables)
        snapshot = cache.cached_blocks()
        assert {block.hash: block.parent_hash for block in snapshot} == replay.parent_of
        assert len(snapshot) == cache.num_cached_blocks
