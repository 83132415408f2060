"""Rendezvous hashing: every key's own order of the ranks.

Each rank has a weight for each key, and the heaviest rank that is there has the key. A weight depends on
nothing but key and rank: so a rank that goes moves only its own keys, and one that comes takes its own back.

Source: D. Thaler, C. Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998 (highest random
weight).
"""

from __future__ import annotations

from hashlib import shake_128

import numpy as np
import numpy.typing as npt


def rendezvous_weights(key: str, num_ranks: int) -> npt.NDArray[np.uint64]:
    """The weights of ranks 0 to `num_ranks` - 1 for `key`, of 64 bits, the same in every process.

    Rank r's is the r-th word of a stream that the key alone decides, so more ranks change none of the others,
    and a thousand cost one hash.
    """
    words = np.frombuffer(shake_128(key.encode()).digest(8 * num_ranks), ">u8")
    return words.astype(np.uint64)
