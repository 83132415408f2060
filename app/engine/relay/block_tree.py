"""The blocks of one group of a foreign cache as a forest, and which of them a prompt can reach.

    root ── A ── B ── C        B is removed, C stays:   root ── A      B: orphans {C}, unreachable
                  └── D        B is stored again:       C is reachable as before

A block is known by its foreign hash, and held as long as one copy of it is. It is reachable while all of its
ancestors are held. A block that can't be placed in our chain (`reason`) is held too, so that its removals and
children are understood, but it is linked to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from app.engine.relay.foreign_events import ForeignHash

NO_NAMES: tuple[int, ...] = ()


class Node(msgspec.Struct, gc=False):
    """One foreign block.

    Attributes:
        parent: the foreign hash before it; None at the root.
        names: our blocks that end in this one, by their wire hashes: as many as its tokens complete; None
            stands for just `last_name`, the usual case.
        last_name: the last of our blocks up to its end; None: there is none yet.
        digest: the digest of that last block, or of the root; empty also where hashes are taken as they are.
        pending: tokens after that block, as uint32 little-endian.
        reason: why it isn't placed in our chain; None: it is.
        copies: how many of it are held.
        child: the linked child; of several any that is or was one: `BlockTree.children` knows them.
        reachable: whether it and all of its ancestors are held and placed.
    """

    parent: ForeignHash | None
    names: tuple[int, ...] | None
    last_name: int | None
    digest: bytes
    pending: bytes
    reason: str | None
    copies: int
    reachable: bool
    child: ForeignHash | None = None

    def own_names(self) -> tuple[int, ...]:
        """Our blocks that end in this one."""
        if self.names is not None:
            return self.names
        assert self.last_name is not None
        return (self.last_name,)


class BlockTree:
    """The nodes of one group by foreign hash, with links from parents to children.

    Attributes:
        nodes: every held block.
        orphans: a parent that isn't held, or not placed → the children that were linked to it.
    """

    def __init__(self) -> None:
        self.nodes: dict[ForeignHash, Node] = {}
        self.orphans: dict[ForeignHash, dict[ForeignHash, None]] = {}
        self._forks: dict[ForeignHash, dict[ForeignHash, None]] = {}
        """Parent with two or more children → all of them."""

    def link(self, key: ForeignHash, parent: Node, parent_key: ForeignHash) -> None:
        """Make `key` a child of a held and placed block."""
        if parent.child is None:
            parent.child = key
        else:
            self._forks.setdefault(parent_key, {parent.child: None})[key] = None

    def adopt(self, key: ForeignHash, node: Node) -> list[ForeignHash]:
        """The children that waited for block `key`, which is placed again; they are linked now."""
        waiting = self.orphans.pop(key, None)
        if waiting is None:
            return []
        for child in waiting:
            self.link(child, node, key)
        return list(waiting)

    def remove(self, key: ForeignHash, node: Node) -> list[ForeignHash]:
        """Take a placed block out; returns its children, which are orphans now."""
        del self.nodes[key]
        if node.parent is not None:
            self._unlink(key, node.parent)
        if node.child is None:
            return []
        children = self._forks.pop(key, None) or {node.child: None}
        self.orphans[key] = children
        return list(children)

    def children(self, key: ForeignHash, node: Node) -> list[ForeignHash]:
        """The linked children of a held block."""
        if node.child is None:
            return []
        forked = self._forks.get(key)
        return [node.child] if forked is None else list(forked)

    def chains(self, keys: list[ForeignHash], reachable: bool) -> Iterator[list[Node]]:
        """The blocks below and with `keys`, which become reachable or no longer are: chain by chain.

        Blocks of a chain follow one another; a chain comes after the one that it branches from. Blocks that
        are in that state already are left out, with all below them.
        """
        waiting = list(reversed(keys))
        while waiting:
            chain, key = [], waiting.pop()
            while (node := self.nodes[key]).reachable != reachable:
                node.reachable = reachable
                chain.append(node)
                children = self.children(key, node)
                if len(children) != 1:
                    waiting += reversed(children)
                    break
                (key,) = children
            if chain:
                yield chain

    def check_integrity(self) -> None:
        """Raise AssertionError where a link or a reachability is wrong."""
        linked: dict[ForeignHash, set[ForeignHash]] = {}
        for key, node in self.nodes.items():
            assert node.copies > 0, f"block {key!r} is held without a copy"
            if node.reason is None and node.parent is not None:
                linked.setdefault(node.parent, set()).add(key)
            parent = None if node.parent is None else self.nodes.get(node.parent)
            expected = node.reason is None and (
                node.parent is None or (parent is not None and parent.reason is None and parent.reachable)
            )
            assert node.reachable == expected, f"block {key!r}: reachable {node.reachable}"
        for key, node in self.nodes.items():
            if node.reason is None:
                assert set(self.children(key, node)) == linked.pop(key, set()), f"children of {key!r}"
            else:
                assert node.child is None, f"block {key!r} isn't placed, but has a child"
        assert {key: set(each) for key, each in self.orphans.items()} == linked, "orphans"
        assert all(len(each) > 1 for each in self._forks.values()), "a fork with one branch"

    def _unlink(self, key: ForeignHash, parent_key: ForeignHash) -> None:
        siblings = self.orphans.get(parent_key) if self.orphans else None
        if siblings is not None and key in siblings:
            del siblings[key]
            if not siblings:
                del self.orphans[parent_key]
            return
        parent = self.nodes[parent_key]
        forked = self._forks.get(parent_key) if self._forks else None
        if forked is None:
            parent.child = None
            return
        del forked[key]
        if len(forked) == 1:  # looked for only now: the first of a dict lies behind all that were deleted
            (parent.child,) = self._forks.pop(parent_key)
