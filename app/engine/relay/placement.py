"""Where a foreign root begins in our chain: its seed, or why its blocks are kept apart.

Only blocks whose keys and values come from plain token ids, and a cache salt perhaps, are placed: no other
prompt that is routed here can hit a block of a LoRA adapter, of an image, or of embeddings.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from app import hashing

LORA = "lora"
MULTIMODAL = "multimodal"
PROMPT_EMBEDS = "prompt_embeds"
UNKNOWN_KEY = "unknown_extra_key"
UNKNOWN_PARENT = "unknown_parent"
UNKNOWN_SALT = "unknown_salt"
SALT_NOT_HASHED = "salt_not_hashed"

MAX_SALTS = 1_024


class KnownSalts:
    """The salts of requests that went to the worker, the latest `MAX_SALTS` of them, with their seeds."""

    def __init__(self) -> None:
        self._seeds: OrderedDict[str, bytes] = OrderedDict()

    def add(self, cache_salt: str) -> None:
        """A request with this salt goes to the worker."""
        if cache_salt in self._seeds:
            self._seeds.move_to_end(cache_salt)
            return
        self._seeds[cache_salt] = hashing.seed(cache_salt)
        if len(self._seeds) > MAX_SALTS:
            self._seeds.popitem(last=False)

    def seeds(self) -> Iterator[bytes]:
        """Their seeds, the latest first."""
        return reversed(list(self._seeds.values()))


def read_extra_keys(extra_keys: Sequence[Sequence[Any] | None], is_root: bool) -> tuple[str | None, int, str]:
    """What vLLM's keys of an event's blocks say, where there is no LoRA adapter.

    They are untagged, so the kind of a value tells what it is: text in the first block of a prompt is its
    salt. Text elsewhere, or a second one, is a multimodal identifier as vLLM before 0.32 wrote them.

    Returns:
        The salt or None; the index of the first block that must be kept apart, `len(extra_keys)` where no
        entry says so, and the reason.
    """
    salt: str | None = None
    for index, keys in enumerate(extra_keys):
        for key in keys or ():
            if isinstance(key, str) and is_root and index == 0 and salt is None:
                salt = key
            elif isinstance(key, str | list):
                return salt, index, MULTIMODAL
            else:
                return salt, index, PROMPT_EMBEDS if isinstance(key, bytes) else UNKNOWN_KEY
    return salt, len(extra_keys), UNKNOWN_KEY  # of blocks without an entry, should there be any


def find_seed(first_block: bytes, name: int, seeds: Iterator[bytes]) -> bytes | None:
    """The seed under which a root's first block has the wire hash `name`; None: none of `seeds`.

    Args:
        first_block: its token ids as uint32 little-endian.
        name: as the worker published it; the worker hashes as we do.
        seeds: to be tried.
    """
    for seed in seeds:
        if hashing.wire_hash(hashlib.sha256(seed + first_block).digest()) == name:
            return seed
    return None
