"""One group of a foreign cache in our chain: hashes its blocks, counts copies, credits what is reachable."""

from __future__ import annotations

import array
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import chain, repeat
from typing import cast

import msgspec

from app import hashing
from app.engine.relay.block_tree import NO_NAMES, BlockTree, Node
from app.engine.relay.foreign_events import ForeignHash
from app.engine.relay.ledger import Counts, Ledger
from app.engine.relay.placement import UNKNOWN_PARENT


class Span(msgspec.Struct, gc=False):
    """Consecutive foreign blocks that were stored.

    Attributes:
        keys: their foreign hashes.
        parent: the foreign hash before the first; None at the root.
        token_ids: of all blocks; empty where `named`.
        data: the same as uint32 little-endian.
        seed: the digest that a root follows.
        named: the keys are our wire hashes already, and nothing is hashed.
        apart_from, reason: from this block on they are kept apart, and why.
    """

    keys: Sequence[ForeignHash]
    parent: ForeignHash | None
    token_ids: list[int]
    data: bytes
    seed: bytes
    named: bool
    apart_from: int
    reason: str


class _Run:
    """Blocks of ours that are credited one after the other, for one event."""

    def __init__(self, ledger: Ledger) -> None:
        self.names: list[int] = []
        self._parent: int | None = None
        self._pieces: list[bytes] = []
        self._ledger = ledger

    def add(self, name: int, parent: int | None, tokens: bytes) -> None:
        """One more block, the child of the one before."""
        if not self.names:
            self._parent = parent
        self.names.append(name)
        self._pieces.append(tokens)

    def end(self, token_ids: list[int] | None = None) -> None:
        """What follows isn't the next block; `token_ids`: those of all, where they are at hand."""
        if self.names:
            tokens = _token_ids(b"".join(self._pieces)) if token_ids is None else token_ids
            self._ledger.say_stored(self.names, self._parent, tokens)
            self.names, self._pieces = [], []


class Group:
    """The blocks of one group; changes go to `ledger`.

    Args:
        ledger: what is credited, over all groups.
        block_size: tokens of a block of ours.
        apart: counts the blocks that are kept apart, by reason.

    Attributes:
        tree: its blocks.
        counts: our blocks that a prompt can reach in it.
        num_unreachable: placed blocks that lack an ancestor.
    """

    def __init__(self, ledger: Ledger, block_size: int, apart: Counter[str]) -> None:
        self.tree = BlockTree()
        self.counts: Counts = ledger.add_group()
        self.num_unreachable = 0
        self._ledger = ledger
        self._width = 4 * block_size
        self._apart = apart

    def store(self, span: Span) -> None:
        """One more copy of each block of `span`."""
        nodes, tree = self.tree.nodes, self.tree
        parent, parent_key = None, span.parent
        reason = None
        if parent_key is not None:
            parent = nodes.get(parent_key)
            reason = UNKNOWN_PARENT if parent is None else parent.reason
        if reason is None and self._store_chain(span, parent):
            return
        run = _Run(self._ledger)
        is_aligned = parent is None or not parent.pending
        for index, key in enumerate(span.keys):
            held = nodes.get(key)
            if held is not None and held.reason is None:
                held.copies += 1
                run.end()
                parent, parent_key, reason = held, key, None
                continue
            copies = 1 if held is None else held.copies + 1
            if reason is None and index >= span.apart_from:
                reason = span.reason
            if reason is not None:
                nodes[key] = self._keep_apart(held, parent_key, reason, copies)
                run.end()
                parent_key = key
                continue
            if held is not None:
                self._count_apart(held.reason, -1)
            node = nodes[key] = self._place(span, index, parent_key, parent, copies, run)
            if parent is not None and parent_key is not None:
                tree.link(key, parent, parent_key)
            if tree.orphans:
                self._adopt(key, node, run)
            parent, parent_key = node, key
        is_whole = (
            is_aligned
            and len(run.names) == len(span.keys)
            and len(span.data) in (0, self._width * len(span.keys))
        )
        run.end(span.token_ids if is_whole else None)

    def _store_chain(self, span: Span, parent: Node | None) -> bool:
        """Store and credit a chain in one piece, if all of it is new and nothing unusual; whether it was."""
        keys, nodes = span.keys, self.tree.nodes
        if (
            len(span.data) not in ((0, self._width * len(keys)) if span.named else (self._width * len(keys),))
            or span.apart_from < len(keys)
            or self.tree.orphans
            or not nodes.keys().isdisjoint(keys)
            or len(set(keys)) < len(keys)
            or (parent is not None and (parent.pending or not parent.reachable))
        ):
            return False
        digests: Iterable[bytes] = repeat(b"")
        if span.named:
            names = cast(Sequence[int], keys)
        else:
            digests = self._digests(span.data, span.seed if parent is None else parent.digest)
            names = hashing.wire_hashes(digests)
        name_before = None if parent is None else parent.last_name
        if not self._ledger.gain_chain(self.counts, names, name_before):
            return False
        if parent is not None and span.parent is not None:
            self.tree.link(keys[0], parent, span.parent)
        before, after = chain((span.parent,), keys), chain(keys[1:], (None,))
        for key, parent_key, name, digest, child in zip(keys, before, names, digests, after, strict=False):
            nodes[key] = Node(parent_key, None, name, digest, b"", None, 1, True, child)
        self._ledger.say_stored(list(names), name_before, span.token_ids)
        return True

    def _digests(self, data: bytes, digest: bytes) -> list[bytes]:
        digests = []
        for start in range(0, len(data), self._width):
            digest = sha256(digest + data[start : start + self._width]).digest()
            digests.append(digest)
        return digests

    def remove(self, keys: Sequence[ForeignHash]) -> int:
        """One copy less of each block; how many of them weren't held."""
        nodes, unknown = self.tree.nodes, 0
        for key in keys:
            node = nodes.get(key)
            if node is None:
                unknown += 1
            elif node.copies > 1:
                node.copies -= 1
            elif node.reason is not None:
                self._count_apart(node.reason, -1)
                del nodes[key]
            else:
                self._remove_placed(key, node)
        return unknown

    def check_integrity(self) -> None:
        """Raise AssertionError where the counts aren't those of the reachable blocks."""
        self.tree.check_integrity()
        names = (name for node in self.tree.nodes.values() if node.reachable for name in node.own_names())
        assert Counter(names) == Counter(self.counts), "counts"
        placed = [node for node in self.tree.nodes.values() if node.reason is None]
        assert self.num_unreachable == sum(not node.reachable for node in placed), "unreachable"

    def _place(
        self,
        span: Span,
        index: int,
        parent_key: ForeignHash | None,
        parent: Node | None,
        copies: int,
        run: _Run,
    ) -> Node:
        """The node of a block whose parent is placed; credited where it is reachable."""
        if parent is None:
            name_before, digest, pending, reachable = None, span.seed, b"", True
        else:
            name_before, digest, pending = parent.last_name, parent.digest, parent.pending
            reachable = parent.reachable
        step = len(span.data) // len(span.keys)
        tokens = span.data[index * step : (index + 1) * step]
        names: tuple[int, ...]
        pieces: Sequence[bytes]
        if span.named:
            name = span.keys[index]
            assert isinstance(name, int)
            digest, pending, names, pieces = b"", b"", (name,), (tokens,)
        else:
            digest, pending, names, pieces = self._hash(digest, pending + tokens)
        last_name = names[-1] if names else name_before
        if reachable:
            self._credit(names, name_before, run, pieces)
        else:
            self.num_unreachable += 1
            run.end()
        return Node(parent_key, names, last_name, digest, pending, None, copies, reachable)

    def _hash(self, digest: bytes, data: bytes) -> tuple[bytes, bytes, tuple[int, ...], Sequence[bytes]]:
        """The last digest, the tokens left over, and the names and tokens of the blocks that `data` fills."""
        width = self._width
        if len(data) == width:
            digest = sha256(digest + data).digest()
            return digest, b"", (hashing.wire_hash(digest),), (data,)
        full = len(data) - len(data) % width
        pieces = [data[start : start + width] for start in range(0, full, width)]
        names: list[int] = []
        for piece in pieces:
            digest = sha256(digest + piece).digest()
            names.append(hashing.wire_hash(digest))
        return digest, data[full:], tuple(names), pieces

    def _credit(self, names: Sequence[int], parent: int | None, run: _Run, pieces: Sequence[bytes]) -> None:
        gain, counts = self._ledger.gain, self.counts
        for name, piece in zip(names, pieces, strict=True):
            if gain(counts, name, parent):
                run.add(name, parent, piece)
            else:
                run.end()
            parent = name

    def _adopt(self, key: ForeignHash, node: Node, run: _Run) -> None:
        """Credit what could not be reached without block `key`. Its token ids aren't known any more."""
        children = self.tree.adopt(key, node)
        if not children:
            return
        run.end()
        if node.reachable:
            for nodes in self.tree.chains(children, True):
                self.num_unreachable -= len(nodes)
                for each in nodes:
                    assert each.parent is not None
                    before = self.tree.nodes[each.parent].last_name
                    names = each.own_names()
                    self._credit(names, before, run, [b""] * len(names))
                run.end()

    def _remove_placed(self, key: ForeignHash, node: Node) -> None:
        """What only this block led to can't be reached any more."""
        orphans = self.tree.remove(key, node)
        if node.reachable:
            self._discredit(node)
            for nodes in self.tree.chains(orphans, False):
                self.num_unreachable += len(nodes)
                for each in nodes:
                    self._discredit(each)
        else:
            self.num_unreachable -= 1

    def _discredit(self, node: Node) -> None:
        for name in node.own_names():
            self._ledger.lose(self.counts, name)

    def _keep_apart(self, held: Node | None, parent: ForeignHash | None, reason: str, copies: int) -> Node:
        if held is not None:
            self._count_apart(held.reason, -1)
        self._count_apart(reason, 1)
        return Node(parent, NO_NAMES, None, b"", b"", reason, copies, False)

    def _count_apart(self, reason: str | None, change: int) -> None:
        assert reason is not None
        self._apart[reason] += change


def _token_ids(data: bytes) -> list[int]:
    ids = array.array("I", data)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()
