"""Turns a foreign engine's cache events into ours, and knows at any time what it holds.

    payload ──▶ decode_foreign ──▶ Relay ──▶ BlockTree per group: copies, parents, reachability
                                    │             │
                                    │ our chain   └──▶ Ledger: what is credited ──▶ CacheEvents, content
                                    └──▶ sha256 of the tokens after the parent's digest

With opaque hashes (vLLM) each block's token ids are hashed after its parent's digest. With chained ones
(SGLang, kvbeacon) a worker whose blocks are as long as ours has hashed just so already: its hashes are taken
as they are, salts included. Another block size is translated by token: a block of ours is credited when
foreign blocks that are held cover all of it.
"""

from __future__ import annotations

import array
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Literal

import msgspec

from app import hashing
from app.engine.relay.foreign_events import (
    Fault,
    ForeignCleared,
    ForeignHash,
    ForeignRemoved,
    ForeignStored,
    decode_foreign,
)
from app.engine.relay.group import Group, Span
from app.engine.relay.ledger import Ledger
from app.engine.relay.placement import (
    LORA,
    SALT_NOT_HASHED,
    UNKNOWN_SALT,
    KnownSalts,
    find_seed,
    read_extra_keys,
)
from app.errors import WireError
from app.events.bad_messages import BadMessages
from app.events.schema import MEDIUM, CacheEvent
from app.events.snapshot import CachedBlock

logger = logging.getLogger(__name__)

HashKind = Literal["opaque", "chained"]
FULL_ATTENTION = (None, "full_attention", "mla_attention", "sink_full_attention")
"""vLLM's kinds of groups whose blocks can be reused wherever a prompt ends."""
_MAX_GROUPS = 64
_MAX_KINDS = 32
_HASH_BYTES = 8


class RelayCounters(msgspec.Struct, frozen=True):
    """What a relay holds and has seen; the dicts have only what isn't zero.

    Attributes:
        num_blocks: blocks of ours that are credited.
        num_foreign_blocks: the worker's blocks that are known, copies not counted.
        kept_apart: held blocks that aren't credited, by reason.
        unreachable: held blocks that lack an ancestor.
        not_followed: blocks stored so far in other media, or in groups without full attention, by kind.
        unknown_removed: removals so far of blocks that weren't known.
        other_roots: first blocks so far whose chained hash isn't that of their tokens without a salt.
        faults: events that could not be used, by reason, and `batch` for whole batches.
        last_fault: the text of the last of them.
    """

    num_blocks: int
    num_foreign_blocks: int
    kept_apart: dict[str, int]
    unreachable: int
    not_followed: dict[str, int]
    unknown_removed: int
    other_roots: int
    faults: dict[str, int]
    last_fault: str


class Relay:
    """What one foreign cache holds, in our chain. Belongs to one thread, or is guarded by its owner.

    Attributes:
        num_cleared: how often the worker said that its cache is empty. From then on everything is known.
        num_unreadable: batches of which nothing could be read, so that what is held may be wrong.
    """

    def __init__(self, block_size: int, *, hashes: HashKind, source: str) -> None:
        """
        Args:
            block_size: tokens of a block of ours; the worker's may be of another size.
            hashes: `opaque`: any name, as vLLM's. `chained`: hashed as in `app.hashing`, as SGLang's.
            source: what is relayed, for the log.
        """
        assert block_size > 0, block_size
        self.num_cleared = 0
        self.num_unreadable = 0
        self._block_size = block_size
        self._is_chained = hashes == "chained"
        self._ledger = Ledger(block_size)
        self._salts = KnownSalts()
        self._groups: dict[int | None, Group] = {}
        self._other_groups: set[int] = set()
        self._foreign_block_size: int | None = None
        self._apart: Counter[str] = Counter()
        self._not_followed: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._unknown_removed = 0
        self._other_roots = 0
        self._last_fault = ""
        self._bad = BadMessages(logger, source, "unusable cache event of")

    @property
    def num_blocks(self) -> int:
        """Blocks of ours that a new prompt could hit."""
        return len(self._ledger.content)

    @property
    def content(self) -> list[CachedBlock]:
        """Everything that a new prompt could hit, parents before children."""
        return list(self._ledger.content.values())

    @property
    def counters(self) -> RelayCounters:
        """What is held and was seen. Takes time in proportion to the number of groups only."""
        groups = self._groups.values()
        return RelayCounters(
            num_blocks=self.num_blocks,
            num_foreign_blocks=sum(len(group.tree.nodes) for group in groups),
            kept_apart=_nonzero(self._apart),
            unreachable=sum(group.num_unreachable for group in groups),
            not_followed=_nonzero(self._not_followed),
            unknown_removed=self._unknown_removed,
            other_roots=self._other_roots,
            faults=_nonzero(self._faults),
            last_fault=self._last_fault,
        )

    def add_salt(self, cache_salt: str) -> None:
        """A request with this salt goes to the worker, whose events may not say it."""
        self._salts.add(cache_salt)

    def apply(self, payload: bytes) -> list[CacheEvent]:
        """One batch of the worker's; what it changes here. Raises nothing, whatever the bytes."""
        try:
            batch = decode_foreign(payload)
        except WireError as error:
            self.num_unreadable += 1
            self._count_fault("batch", str(error))
            return []
        for fault in batch.faults:
            self._count_fault(fault.kind, fault.text)
        for event in batch.events:
            match event:
                case ForeignStored():
                    unusable = self._store(event)
                    if unusable is not None:
                        self._count_fault(unusable.kind, unusable.text)
                case ForeignRemoved():
                    self._remove(event)
                case ForeignCleared():
                    self._forget()
                    self.num_cleared += 1
        return self._ledger.drain()

    def clear(self) -> list[CacheEvent]:
        """Hold nothing: what the worker holds isn't known any more."""
        self._forget()
        return self._ledger.drain()

    def check_integrity(self) -> None:
        """Raise AssertionError where what is kept redundantly disagrees."""
        for group in self._groups.values():
            group.check_integrity()
        self._ledger.check_integrity([group.counts for group in self._groups.values()])
        nodes = chain.from_iterable(group.tree.nodes.values() for group in self._groups.values())
        reasons = Counter(node.reason for node in nodes if node.reason is not None)
        assert _nonzero(self._apart) == dict(reasons), "kept apart"

    def _forget(self) -> None:
        # A worker that starts again at the same address may have other groups, and blocks of another size.
        self._groups.clear()
        self._other_groups.clear()
        self._foreign_block_size = None
        self._apart.clear()
        self._ledger.clear()

    # ---- stored

    def _store(self, event: ForeignStored) -> Fault | None:
        """Take in an event's blocks; None, or why they can't be."""
        if not event.block_hashes or not self._is_followed(event):
            return None
        fault = self._fault(event)
        if fault is not None:
            return fault
        try:
            data = _uint32_le(event.token_ids)
        except OverflowError:
            return Fault("token_id", f"a token id outside 0..{2**32 - 1}")
        group = self._group(event.group_idx)
        if group is None:
            return Fault("groups", f"group {event.group_idx}; at most {_MAX_GROUPS} are followed")
        group.store(self._span(event, data))
        return None

    def _is_followed(self, event: ForeignStored) -> bool:
        """Whether the blocks are where a prompt can reuse them as they are; others are counted."""
        if not _is_here(event):
            kind = f"medium:{event.medium}" if event.medium not in (None, MEDIUM) else "locality:REMOTE"
        elif event.kv_cache_spec_kind not in FULL_ATTENTION:
            kind = f"group:{event.kv_cache_spec_kind}"
            if event.group_idx is not None and len(self._other_groups) < _MAX_GROUPS:
                self._other_groups.add(event.group_idx)
        else:
            return True
        if kind not in self._not_followed and len(self._not_followed) >= _MAX_KINDS:
            kind = "other"
        self._not_followed[kind] += len(event.block_hashes)
        return False

    def _fault(self, event: ForeignStored) -> Fault | None:
        count, size = len(event.block_hashes), event.block_size
        if size < 1:
            return Fault("block_size", f"blocks of {size} tokens; at least 1 is needed")
        if self._is_chained and self._foreign_block_size not in (None, size):
            return Fault("block_size", f"blocks of {size} tokens after ones of {self._foreign_block_size}")
        if len(event.token_ids) != count * size and (event.token_ids or not self._is_named(event)):
            given = f"{len(event.token_ids)} token ids for {count} blocks of {size}"
            return Fault("token_count", f"{given}; {count * size} are needed")
        self._foreign_block_size = size
        return None

    def _is_named(self, event: ForeignStored) -> bool:
        """Whether the worker's hashes are the ones that we would compute."""
        return self._is_chained and event.block_size == self._block_size

    def _group(self, group_idx: int | None) -> Group | None:
        group = self._groups.get(group_idx)
        if group is None and len(self._groups) < _MAX_GROUPS:
            group = self._groups[group_idx] = Group(self._ledger, self._block_size, self._apart)
        return group

    def _span(self, event: ForeignStored, data: bytes) -> Span:
        keys, parent = event.block_hashes, event.parent_block_hash
        if self._is_chained:
            keys = [_signed(key) for key in keys]
            parent = None if parent is None else _signed(parent)
        count, salt = len(keys), event.cache_salt
        apart_from, reason, seed = count, "", hashing.ROOT
        if event.lora_name is not None or event.lora_id is not None:
            apart_from, reason = 0, LORA
        elif event.extra_keys is not None and any(event.extra_keys):
            found, apart_from, reason = read_extra_keys(event.extra_keys, parent is None)
            salt = salt if found is None else found
        if parent is None and apart_from:
            if not self._is_chained:
                seed = hashing.seed(salt)
            elif data:
                seed, root_reason = self._chained_root(keys[0], data[: len(data) // count], event)
                if root_reason:
                    apart_from, reason = 0, root_reason
        return Span(keys, parent, event.token_ids, data, seed, self._is_named(event), apart_from, reason)

    def _chained_root(self, name: ForeignHash, block: bytes, event: ForeignStored) -> tuple[bytes, str]:
        """The seed of a root that the worker has hashed, or why its blocks are kept apart."""
        assert isinstance(name, int)
        if find_seed(block, name, iter((hashing.ROOT,))) is not None:
            return hashing.ROOT, SALT_NOT_HASHED if event.cache_salt else ""
        self._other_roots += 1
        if self._is_named(event):
            return hashing.ROOT, ""  # whatever the salt is, it is in the hash
        own = () if event.cache_salt is None else (hashing.seed(event.cache_salt),)
        seed = find_seed(block, name, chain(own, self._salts.seeds()))
        return (hashing.ROOT, UNKNOWN_SALT) if seed is None else (seed, "")

    # ---- removed

    def _remove(self, event: ForeignRemoved) -> None:
        if not _is_here(event) or event.group_idx in self._other_groups:
            return
        keys: Sequence[ForeignHash] = event.block_hashes
        if self._is_chained:
            keys = [_signed(key) for key in keys]
        group = self._groups.get(event.group_idx)
        self._unknown_removed += len(keys) if group is None else group.remove(keys)

    def _count_fault(self, kind: str, text: str) -> None:
        self._faults[kind] += 1
        self._last_fault = text
        self._bad.add(text)


def _is_here(event: ForeignStored | ForeignRemoved) -> bool:
    return event.medium in (None, MEDIUM) and event.locality != "REMOTE"


def _signed(key: ForeignHash) -> int:
    """A chained hash as signed int64: unsigned ones wrap, of raw bytes the first 8 count."""
    if isinstance(key, bytes):
        return int.from_bytes(key[:_HASH_BYTES], "big", signed=True)
    return key - 2**64 if key >= 2**63 else key


def _uint32_le(token_ids: list[int]) -> bytes:
    packed = array.array("I", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _nonzero(counter: Counter[str]) -> dict[str, int]:
    return {kind: count for kind, count in counter.items() if count}
