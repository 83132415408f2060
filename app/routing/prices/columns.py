"""Numbers of every rank, in rows that grow with the highest rank."""

from __future__ import annotations

import numpy as np


class Columns:
    """Zeros until written.

    Args:
        num_rows: numbers of each rank.

    Attributes:
        values: shape (rows, ranks that there is room for).
    """

    def __init__(self, num_rows: int) -> None:
        self.values = np.zeros((num_rows, 8))

    def make_room(self, rank: int) -> None:
        """Have a column for `rank` and all below it."""
        size = self.values.shape[1]
        if rank >= size:
            self.values = np.pad(self.values, ((0, 0), (0, max(rank + 1 - size, size))))

    def drop(self, rank: int) -> None:
        """Zeros again."""
        if rank < self.values.shape[1]:
            self.values[:, rank] = 0
