"""A rank's whole cache content at a known sequence number.

    engine's thread, between two steps        any other thread
    CacheContent (epoch, seq, blocks)  ──▶  payloads: AllBlocksCleared, then BlockStored, chain by chain

A snapshot is what a subscriber would have received, had the cache been empty and filled just now:
ordinary batches, all with the number of the last batch whose change is in them. So a reader of batches reads
snapshots too, under the same caps. Tokens are not part of it: the cache knows its blocks only by hash.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import msgspec

from app.events.batch_codec import encode_batch
from app.events.schema import (
    MEDIUM,
    AllBlocksCleared,
    BlockStored,
    CacheEvent,
    EventBatch,
    Format,
)

BLOCKS_PER_PAYLOAD = 8_192
"""So few that applying one payload holds up nothing else for long."""
_CHAINED_BLOCKS = 16_384
"""So few that sorting them into chains holds up no other answer for long."""


class CachedBlock(msgspec.Struct, frozen=True, gc=False):
    """One cached block by its name on the wire; `parent_hash` is None for a first block."""

    hash: int
    parent_hash: int | None


class CacheContent(msgspec.Struct, frozen=True):
    """All blocks of a cache, parents before children, right after batch `seq` of the publisher `epoch`."""

    epoch: str
    seq: int
    blocks: Sequence[CachedBlock]


class CacheSnapshot(msgspec.Struct, frozen=True):
    """`CacheContent` as it travels: the payloads of the batches that make an empty cache into it."""

    epoch: str
    seq: int
    payloads: list[bytes]


class StoredBlocks(Iterable[CacheEvent]):
    """`BlockStored` events that say that `blocks` are there now; made when they are iterated over."""

    def __init__(self, blocks: Sequence[CachedBlock], block_size: int) -> None:
        self._blocks = blocks
        self._block_size = block_size

    def __iter__(self) -> Iterator[CacheEvent]:
        return _all_chains(self._blocks, self._block_size)


def snapshot_payloads(
    blocks: Iterable[CachedBlock], *, dp_rank: int, block_size: int, format: Format = "map"
) -> Iterator[bytes]:
    """The payloads of a snapshot of `blocks`; made one by one, as there may be millions of blocks."""
    ts = time.time()
    events: list[CacheEvent] = [AllBlocksCleared()]
    num_blocks = 0
    for chain in _all_chains(blocks, block_size):
        events.append(chain)
        num_blocks += len(chain.block_hashes)
        if num_blocks >= BLOCKS_PER_PAYLOAD:
            yield encode_batch(EventBatch(ts, events, dp_rank), format)
            events, num_blocks = [], 0
    if events:
        yield encode_batch(EventBatch(ts, events, dp_rank), format)


def _all_chains(blocks: Iterable[CachedBlock], block_size: int) -> Iterator[BlockStored]:
    rest = iter(blocks)
    while some := list(islice(rest, _CHAINED_BLOCKS)):
        yield from _chains(some, block_size)


def _chains(blocks: Iterable[CachedBlock], block_size: int) -> Iterator[BlockStored]:
    """One event per sequence and fork, or nearly: sequences that grew side by side come one after another.

    A chain begins with a block whose parent was no chain's end, so that it comes after its parent's chain.
    """
    chains: list[tuple[int | None, list[int]]] = []
    chain_ending_with: dict[int | None, list[int]] = {}
    for block in blocks:
        chain = chain_ending_with.pop(block.parent_hash, None)
        if chain is None or len(chain) == BLOCKS_PER_PAYLOAD:
            chain = []
            chains.append((block.parent_hash, chain))
        chain.append(block.hash)
        chain_ending_with[block.hash] = chain
    for parent, hashes in chains:
        yield BlockStored(hashes, parent, [], block_size, medium=MEDIUM)
