"""When a batch that doesn't come is lost, and when to ask whether there is one."""

from __future__ import annotations

import time


class LossDetector:
    """Knows which batch is known to exist without having come, and since when nothing was heard.

    Args:
        unseen_timeout_s: how long a batch that exists may be on its way before it counts as lost.
        probe_interval_s: how long nothing may be heard before asking for later batches; None: nobody to ask.
    """

    def __init__(self, unseen_timeout_s: float, probe_interval_s: float | None) -> None:
        self._unseen_timeout_s = unseen_timeout_s
        self._probe_interval_s = probe_interval_s
        self._unseen_seq: int | None = None
        self._lost_at = 0.0
        self._probe_due = 0.0

    def note_exists(self, seq: int, applied_seq: int) -> bool:
        """Batch `seq` was published, and `applied_seq` is the last that has come; whether that is news."""
        if seq <= applied_seq or (self._unseen_seq is not None and self._unseen_seq > applied_seq):
            return False
        self._unseen_seq, self._lost_at = seq, time.monotonic() + self._unseen_timeout_s
        return True

    def note_heard(self) -> None:
        """Something came that would have shown a gap: no need to ask for a while."""
        if self._probe_interval_s is not None:
            self._probe_due = time.monotonic() + self._probe_interval_s

    def begin(self) -> None:
        """After a snapshot: nothing is known to be missing, but a batch may be, so the first probe is due."""
        self._unseen_seq, self._probe_due = None, 0.0

    def next_look(self) -> float | None:
        """The monotonic time of the next `lost` or `take_probe` that may say something."""
        if self._unseen_seq is not None:
            return self._lost_at
        return None if self._probe_interval_s is None else self._probe_due

    def lost(self, applied_seq: int) -> int | None:
        """The batch that counts as lost by now, if one does; told once."""
        if self._unseen_seq is None:
            return None
        if self._unseen_seq > applied_seq and time.monotonic() < self._lost_at:
            return None
        seq, self._unseen_seq = self._unseen_seq, None
        return seq if seq > applied_seq else None

    def take_probe(self) -> bool:
        """Whether it is time to ask for later batches; the next time is an interval away then."""
        is_due = (
            self._probe_interval_s is not None
            and self._unseen_seq is None
            and time.monotonic() >= self._probe_due
        )
        if is_due:
            self.note_heard()
        return is_due
