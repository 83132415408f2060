"""Rendezvous hashing: every key's own order of the ranks.

Each rank has a weight for each key, and the heaviest rank that is there has the key. A weight depends on
nothing but key and rank: so a rank that goes moves only its own keys, and one that comes takes its own back.

Source: D. Thaler, C. Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998 (highest random
weight).
"""

from __future__ import annotations

from hashlib import blake2b


def rendezvous_weight(key: str, rank: int) -> float:
    """The weight of `rank` for `key`: from 0 to 1, the same in every process and on every machine."""
    digest = blake2b(key.encode(), digest_size=8, salt=rank.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big") / 2**64
