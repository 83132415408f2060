"""Sets of ranks as Python ints: bit r stands for rank r."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@lru_cache(maxsize=1024)
def ranks_in(bits: int) -> Integers:
    """The ranks of a bit set, lowest first; read-only.

    The same sets are looked up again and again: the ranks that hold a prefix that many requests share.
    """
    octets = np.frombuffer(bits.to_bytes((bits.bit_length() + 7) // 8, "little"), np.uint8)
    ranks = np.flatnonzero(np.unpackbits(octets, bitorder="little"))
    ranks.flags.writeable = False
    return ranks
