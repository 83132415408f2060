"""A prefix cache that is too slow and too simple to be wrong, to compare the real one with.

free   [Block taken next, ... Block taken last]      a plain list; with segments, after it:
again  [Block taken next, ... Block taken last]      those that were used again
tables [[Block, Block], [Block, Block, Block], ...]  a block is free when it is in none of them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Prefix = tuple[str | None, tuple[int, ...]]
"""A salt, and every token up to a block's end."""


@dataclass(eq=False)
class Block:
    """`prefix` is the salt and every token up to the block's end, once all are computed and can be found."""

    prefix: Prefix | None = None


Table = list[Block]


class NaiveCache:
    """Blocks found by comparing whole prefixes, everything counted again at every question."""

    def __init__(self, num_blocks: int, block_size: int, max_protected: int | None = None) -> None:
        self.block_size = block_size
        self.max_protected = max_protected  # blocks in the second segment, held ones too; None: no segments
        self.blocks = [Block() for _ in range(num_blocks)]
        self.free = list(self.blocks)
        self.again: list[Block] = []
        self.protected: list[Block] = []  # used again, free or held
        self.tables: list[Table] = []
        self.unseen: list[Table] = []  # opened before the last reset: what they fill isn't found
        self.evicted: list[Prefix] = []

    @property
    def cached(self) -> set[Prefix]:
        return {block.prefix for block in self.blocks if block.prefix is not None}

    @property
    def in_order(self) -> list[Block]:
        """The free blocks, the one taken next first."""
        return self.free + self.again

    def find(self, prefix: Prefix) -> Block | None:
        return next((block for block in self.blocks if block.prefix == prefix), None)

    def prefixes(self, salt: str | None, tokens: Sequence[int]) -> list[Prefix]:
        ends = range(self.block_size, len(tokens) + 1, self.block_size)
        return [(salt, tuple(tokens[:end])) for end in ends]

    def count_hits(self, salt: str | None, tokens: Sequence[int]) -> int:
        hits = [self.find(prefix) is not None for prefix in self.prefixes(salt, tokens)]
        return hits.index(False) if False in hits else len(hits)

    def fits(self, salt: str | None, tokens: Sequence[int], num_hits: int, num_blocks: int) -> bool:
        hits = [self.find(prefix) for prefix in self.prefixes(salt, tokens)[:num_hits]]
        return num_blocks - num_hits <= len([block for block in self.in_order if block not in hits])

    def open(self, salt: str | None, tokens: Sequence[int], num_hits: int) -> Table:
        table = []
        for prefix in self.prefixes(salt, tokens)[:num_hits]:
            block = self.find(prefix)
            assert block is not None
            table.append(block)
            self._use_again(block)
        self.tables.append(table)
        return table

    def grow(self, table: Table, num_blocks: int) -> bool:
        if num_blocks - len(table) > len(self.in_order):
            return False
        while len(table) < num_blocks:
            block = self.in_order[0]
            self._forget(block)
            if block.prefix is not None:
                self.evicted.append(block.prefix)
                block.prefix = None
            table.append(block)
        return True

    def commit(self, table: Table, salt: str | None, tokens: Sequence[int]) -> None:
        """All `tokens` are computed."""
        if any(table is unseen for unseen in self.unseen):
            return
        for index, prefix in enumerate(self.prefixes(salt, tokens)):
            cached = self.find(prefix)
            if cached is None:
                table[index].prefix = prefix
            elif cached is not table[index]:
                own, table[index] = table[index], cached
                self._use_again(cached)
                self._release(own)

    def close(self, table: Table) -> None:
        self.tables = [other for other in self.tables if other is not table]
        self.unseen = [other for other in self.unseen if other is not table]
        while table:
            self._release(table.pop())

    def reset(self) -> None:
        self.unseen = list(self.tables)
        for block in self.blocks:
            block.prefix = None
        self.free, self.again, self.protected = self.in_order, [], []

    def _use_again(self, block: Block) -> None:
        is_protected = block in self.protected
        self._forget(block)
        if is_protected or self.max_protected is not None:
            self.protected.append(block)

    def _forget(self, block: Block) -> None:
        """It is in no list any more."""
        for listed in (self.free, self.again, self.protected):
            if block in listed:
                listed.remove(block)

    def _release(self, block: Block) -> None:
        if any(block in table for table in self.tables) or block in self.in_order:
            return
        if block.prefix is None:
            self._forget(block)
            self.free.insert(0, block)
        elif block not in self.protected:
            self.free.append(block)
        else:
            self.again.append(block)
            while len(self.protected) > (self.max_protected or 0) and self.again:
                demoted = self.again[0]
                self._forget(demoted)
                self.free.append(demoted)
