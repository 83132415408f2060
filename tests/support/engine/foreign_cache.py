"""A foreign engine's cache as simple as can be: it tells its changes in events, and what a prompt can hit."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from typing import Any

import msgspec

from app import hashing

FULL_ATTENTION = (None, "full_attention")


@dataclass(frozen=True)
class Prompt:
    """Tokens, and what else a hash covers; an image is in the second block."""

    tokens: tuple[int, ...]
    salt: str | None = None
    lora: str | None = None
    image: str | None = None


@dataclass
class Entry:
    """A held block, the last of `num_blocks` of `prompt`; `placed`: its place in our chain is known."""

    prompt: Prompt
    num_blocks: int
    placed: bool
    copies: int = 1


@dataclass
class ForeignCache:
    """Held blocks with their copies, and the events since the last `payload`.

    Attributes:
        block_size: tokens of a block.
        chained: whether hashes are chained as ours; otherwise they are 32 bytes of vLLM's kind.
        groups: number → kind of attention; None for engines that don't tell either.
        with_tokens: whether events have token ids.
        known_salts: what a relay of another block size needs to place a chained root.
    """

    block_size: int
    chained: bool = False
    groups: dict[int | None, str | None] = field(default_factory=lambda: {None: None})
    with_tokens: bool = True
    known_salts: set[str | None] = field(default_factory=lambda: {None})
    entries: dict[tuple[int | None, int | bytes], Entry] = field(default_factory=dict)
    events: list[Any] = field(default_factory=list)

    def key(self, prompt: Prompt, num_blocks: int) -> int | bytes:
        """The hash of the last of the prompt's first `num_blocks` blocks."""
        tokens = prompt.tokens[: num_blocks * self.block_size]
        if self.chained:
            return hashing.wire_hashes(hashing.chain(tokens, self.block_size, hashing.seed(prompt.salt)))[-1]
        image = prompt.image if num_blocks > 1 else None
        return hashlib.sha256(repr((tokens, prompt.salt, prompt.lora, image)).encode()).digest()

    def store(self, prompt: Prompt, start: int, stop: int, medium: str | None = "GPU") -> None:
        """One more copy of the prompt's blocks start..stop-1, in every group."""
        for group, kind in self.groups.items():
            self.events.append(self._stored(prompt, start, stop, medium, group, kind))
            if medium in (None, "GPU"):
                for num_blocks in range(start + 1, stop + 1):
                    self._hold(group, prompt, num_blocks)

    def remove(self, held: list[tuple[int | None, int | bytes]]) -> None:
        """One copy less of held blocks."""
        for group, key in held:
            self.events.append(self._removed(group, key, "GPU"))
            entry = self.entries[group, key]
            entry.copies -= 1
            if not entry.copies:
                del self.entries[group, key]

    def remove_elsewhere(self, prompt: Prompt, medium: str) -> None:
        """The prompt's first block leaves another medium."""
        self.events += [self._removed(group, self.key(prompt, 1), medium) for group in self.groups]

    def clear(self) -> None:
        """Hold nothing."""
        self.entries.clear()
        self.events.append({"type": "AllBlocksCleared"})

    def payload(self, *, as_arrays: bool = False) -> bytes:
        """The batch of all events since the last call."""
        events, self.events = self.events, []
        wire = [list(event.values()) for event in events] if as_arrays else events
        return msgspec.msgpack.encode([0.0, wire, 0])

    def hits(self, block_size: int) -> dict[int, int | None]:
        """Every block of `block_size` tokens that a new prompt could hit, by name, and its parent's name."""
        full = [group for group, kind in self.groups.items() if kind in FULL_ATTENTION]
        per_group = [self._hits(group, block_size) for group in full]
        common = set.intersection(*map(set, per_group))
        return {name: parent for name, parent in per_group[0].items() if name in common}

    def _hits(self, group: int | None, block_size: int) -> dict[int, int | None]:
        names: dict[int, int | None] = {}
        for entry in [entry for (each, _), entry in self.entries.items() if each == group]:
            if all(self._is_placed(group, entry.prompt, count) for count in range(1, entry.num_blocks + 1)):
                tokens = entry.prompt.tokens[: entry.num_blocks * self.block_size]
                digests = hashing.chain(tokens, block_size, hashing.seed(entry.prompt.salt))
                names |= dict(itertools.pairwise([None, *hashing.wire_hashes(digests)][::-1]))  # type: ignore[arg-type]
        return names

    def _is_placed(self, group: int | None, prompt: Prompt, num_blocks: int) -> bool:
        entry = self.entries.get((group, self.key(prompt, num_blocks)))
        return entry is not None and entry.placed

    def _hold(self, group: int | None, prompt: Prompt, num_blocks: int) -> None:
        key = self.key(prompt, num_blocks)
        entry = self.entries.get((group, key))
        parent_placed = num_blocks == 1 or self._is_placed(group, prompt, num_blocks - 1)
        is_plain = prompt.lora is None and (prompt.image is None or num_blocks == 1)
        placed = parent_placed and is_plain and prompt.salt in self.known_salts
        if entry is None:
            self.entries[group, key] = Entry(prompt, num_blocks, placed)
        else:
            entry.copies += 1
            entry.placed = entry.placed or placed

    def _stored(
        self, prompt: Prompt, start: int, stop: int, medium: str | None, group: int | None, kind: str | None
    ) -> dict[str, Any]:
        size = self.block_size
        extra_keys = None if self.chained else [self._extra_keys(prompt, each) for each in range(start, stop)]
        return {
            "type": "BlockStored",
            "block_hashes": [self.key(prompt, each + 1) for each in range(start, stop)],
            "parent_block_hash": self.key(prompt, start) if start else None,
            "token_ids": list(prompt.tokens[start * size : stop * size]) if self.with_tokens else [],
            "block_size": size,
            "lora_id": None if prompt.lora is None else 1,
            "medium": medium,
            "lora_name": prompt.lora,
            "extra_keys": extra_keys,
            "group_idx": group,
            "kv_cache_spec_kind": kind,
        }

    @staticmethod
    def _removed(group: int | None, key: int | bytes, medium: str) -> dict[str, Any]:
        return {"type": "BlockRemoved", "block_hashes": [key], "medium": medium, "group_idx": group}

    @staticmethod
    def _extra_keys(prompt: Prompt, index: int) -> list[Any] | None:
        keys: list[Any] = [] if prompt.lora is None else [prompt.lora]
        if prompt.image is not None and index == 1:
            keys.append([prompt.image, 0])
        if prompt.salt is not None and index == 0:
            keys.append(prompt.salt)
        return keys or None
