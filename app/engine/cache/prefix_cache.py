"""Which blocks hold which tokens: finding, filling, evicting, and saying so in events.

A full block is found by the chained digest of all tokens up to its end (`app.hashing`), so equal digests
mean equal prefixes. The set of cached digests is closed under parents: a block's parent is evicted after
it. That holds because a holder of a block holds its parent too, releases it later, and free blocks are taken
in order of release, or by segments that keep to it (`free_blocks`); a request that computed a block which
another one has cached meanwhile goes over to the cached copy for the same reason. So the longest cached
prefix can be found by bisection, and no event names a parent that consumers don't know.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app import hashing
from app.engine.cache.block_pool import BlockPool
from app.events.schema import (
    MAX_HASHES_PER_EVENT,
    MEDIUM,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    CacheEvent,
)
from app.events.snapshot import CachedBlock
from app.settings.engine import Eviction


@dataclass(slots=True, eq=False)
class BlockTable:
    """One sequence's blocks. Written by `PrefixCache` only.

    tokens     |0 ...... 15|16 ..... 31|32 ..... 47|48 .. 50
    block_ids  |    [0]    |    [1]    |    [2]    |  [3]        allocated, in order
    digests    |    [0]    |    [1]    |    [2]    |             of full blocks of known tokens
               '-- num_committed = 2 --'                         findable by digest
    """

    seed: bytes
    block_ids: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    num_committed: int = 0
    last_num_hits: int = 0  # a guess that the next look begins with, and checks
    generation: int = -1  # of the cache when the blocks were taken; an older one's are no longer findable

    def extend_digests(self, token_ids: Sequence[int], block_size: int) -> None:
        """Add the digests of blocks that `token_ids`, all tokens known by now, have filled."""
        start = len(self.digests) * block_size
        if len(token_ids) - start >= block_size:
            parent = self.digests[-1] if self.digests else self.seed
            self.digests += hashing.chain(token_ids[start:], block_size, parent)


class PrefixCache:
    """The blocks of one rank's KV cache by content.

    Args:
        num_blocks: of the cache.
        block_size: tokens of a block.
        eviction: which of the blocks that no sequence holds goes first.
    """

    def __init__(self, num_blocks: int, block_size: int, eviction: Eviction = "lru") -> None:
        self.block_size = block_size
        self._pool = BlockPool(num_blocks, eviction)
        # In the order of caching, so parents come before children.
        self._block_of: dict[bytes, int] = {}
        self._digest_of: list[bytes | None] = [None] * num_blocks
        self._named: dict[bytes, CachedBlock] = {}
        self._generation = 0
        self._events: list[CacheEvent] = []

    @property
    def num_blocks(self) -> int:
        """All blocks."""
        return self._pool.num_blocks

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that a new prompt could hit."""
        return len(self._block_of)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds, cached or not."""
        return self._pool.num_free

    def match(self, digests: Sequence[bytes], stop: int | None = None) -> int:
        """How many of the leading `digests`, `stop` at most, are cached."""
        return bisect_left(digests, True, hi=stop, key=lambda digest: digest not in self._block_of)

    def count_hits(self, table: BlockTable, stop: int) -> int:
        """How many of the first `stop` blocks that `table` has, or is to have, are cached.

        Two look-ups where the answer is still what it was, a bisection where not.
        """
        digests, guess = table.digests, table.last_num_hits
        if (
            guess <= stop
            and (guess == 0 or digests[guess - 1] in self._block_of)
            and (guess == stop or digests[guess] not in self._block_of)
        ):
            return guess
        table.last_num_hits = self.match(digests, stop)
        return table.last_num_hits

    def is_findable(self, table: BlockTable) -> bool:
        """Whether the blocks that `table` fills will be found, as they won't after a reset."""
        return table.generation == self._generation

    def fits(self, table: BlockTable, num_hits: int, num_blocks: int) -> bool:
        """Whether `num_blocks` blocks for `table` could be held, the first `num_hits` being cached ones."""
        needed = num_blocks - num_hits
        if needed > self._pool.num_free:
            return False
        # A holder of a block holds those before it, so the hits without a holder are the last ones.
        held = bisect_left(
            table.digests, True, hi=num_hits, key=lambda digest: self._pool.is_free(self._block_of[digest])
        )
        return needed <= self._pool.num_free - (num_hits - held)

    def open(self, table: BlockTable, num_hits: int) -> None:
        """Start an empty `table` with the blocks of its first `num_hits` digests, which are cached."""
        assert not table.block_ids, "table is open already"
        table.block_ids = [self._block_of[digest] for digest in table.digests[:num_hits]]
        for block in table.block_ids:
            self._pool.hold(block)
        table.num_committed = num_hits
        table.generation = self._generation

    def grow(self, table: BlockTable, num_blocks: int) -> bool:
        """Give `table` new blocks until it has `num_blocks`; False, and no change, where too few are free."""
        missing = num_blocks - len(table.block_ids)
        if missing > self._pool.num_free:
            return False
        removed: list[int] = []
        for _ in range(missing):
            block = self._pool.take()
            removed += self._forget(block)
            table.block_ids.append(block)
        if removed:
            self._record_removed(removed)
        return True

    def commit(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """Make the full blocks among the first `num_computed` tokens of `table` findable."""
        num_full = num_computed // self.block_size
        if num_full == table.num_committed or not self.is_findable(table):
            return
        table.extend_digests(token_ids, self.block_size)
        first_new = table.num_committed + self.match(table.digests[table.num_committed : num_full])
        for index in range(table.num_committed, first_new):
            self._go_over_to_cached(table, index)
        if first_new < num_full:
            self._store(table, token_ids, first_new, num_full)
        table.num_committed = num_full

    def close(self, table: BlockTable) -> None:
        """Release `table`'s blocks, the tail first so that it is evicted before the head."""
        for block in reversed(table.block_ids):
            self._release(block)
        table.block_ids = []
        table.num_committed = 0

    def reset(self) -> None:
        """Forget all contents. Open tables keep their blocks, which are never found again."""
        self._block_of.clear()
        self._named.clear()
        self._digest_of = [None] * self.num_blocks
        self._pool.forget_contents()
        self._generation += 1
        self._events.append(AllBlocksCleared())

    def drain_events(self) -> list[CacheEvent]:
        """What changed since the last call, in order."""
        events, self._events = self._events, []
        return events

    def cached_blocks(self) -> list[CachedBlock]:
        """Everything that can be found, parents before children."""
        return list(self._named.values())

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Raise AssertionError unless every block is free or held by `tables`, and found where it says."""
        tables = list(tables)
        self._pool.check_integrity(block for table in tables for block in table.block_ids)
        for digest, block in self._block_of.items():
            assert self._digest_of[block] == digest, f"block {block} does not hold the digest that finds it"
        num_cached = sum(digest is not None for digest in self._digest_of)
        assert num_cached == len(self._block_of) == len(self._named), "a block's digest does not find it"
        self._check_parents()
        for table in tables:
            if self.is_findable(table):
                committed = zip(table.digests, table.block_ids[: table.num_committed], strict=False)
                assert all(self._block_of.get(digest) == block for digest, block in committed)

    def _check_parents(self) -> None:
        seen: set[int | None] = {None}
        for cached in self._named.values():
            assert cached.parent_hash in seen, f"block {cached.hash} is cached without its parent"
            seen.add(cached.hash)

    def _store(self, table: BlockTable, token_ids: Sequence[int], start: int, stop: int) -> None:
        """Make blocks start..stop-1 of `table` findable, with one event for all of them."""
        parent = hashing.wire_hash(table.digests[start - 1]) if start else None
        digests, blocks = table.digests[start:stop], table.block_ids[start:stop]
        names = hashing.wire_hashes(digests)
        self._block_of.update(zip(digests, blocks, strict=True))
        self._named.update(zip(digests, map(CachedBlock, names, [parent, *names]), strict=False))
        for digest, block in zip(digests, blocks, strict=True):
            self._digest_of[block] = digest
        stored = list(token_ids[start * self.block_size : stop * self.block_size])
        self._events.append(BlockStored(names, parent, stored, self.block_size, medium=MEDIUM))

    def _record_removed(self, names: list[int]) -> None:
        """One event for all that is evicted with nothing in between, as in most steps of a full cache."""
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockRemoved) and len(last.block_hashes) + len(names) <= MAX_HASHES_PER_EVENT:
            last.block_hashes.extend(names)
        else:
            self._events.append(BlockRemoved(names, MEDIUM))

    def _go_over_to_cached(self, table: BlockTable, index: int) -> None:
        """Exchange a block that `table` computed for the one already cached with the same content."""
        cached = self._block_of[table.digests[index]]
        self._pool.hold(cached)
        self._release(table.block_ids[index])
        table.block_ids[index] = cached

    def _release(self, block: int) -> None:
        self._pool.release(block, take_first=self._digest_of[block] is None)

    def _forget(self, block: int) -> list[int]:
        """Evict what `block` held: its wire hash, or nothing."""
        digest = self._digest_of[block]
        if digest is None:
            return []
        self._digest_of[block] = None
        del self._block_of[digest]
        return [self._named.pop(digest).hash]
