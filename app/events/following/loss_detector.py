"""When a batch that was published but not received is lost, and when to ask whether there is one."""

from __future__ import annotations

import time


class LossDetector:
    """Knows which batch was published but not received, and for how long nothing was received.

    Args:
        delivery_timeout_s: how long a batch that was published may take to arrive; then it is lost.
        probe_interval_s: how long nothing may be received before asking for later batches; None: there is no
            replay to ask.
    """

    def __init__(self, delivery_timeout_s: float, probe_interval_s: float | None) -> None:
        self._delivery_timeout_s = delivery_timeout_s
        self._probe_interval_s = probe_interval_s
        self._missing_seq: int | None = None
        self._lost_at = 0.0
        self._probe_due = 0.0

    def record_published(self, seq: int, applied_seq: int) -> bool:
        """Batch `seq` was published, and `applied_seq` is the last applied one; whether that is news."""
        if seq <= applied_seq or (self._missing_seq is not None and self._missing_seq > applied_seq):
            return False
        self._missing_seq, self._lost_at = seq, time.monotonic() + self._delivery_timeout_s
        return True

    def record_received(self) -> None:
        """Something was received that would have shown a gap: no need to ask for a while."""
        if self._probe_interval_s is not None:
            self._probe_due = time.monotonic() + self._probe_interval_s

    def begin(self) -> None:
        """After a snapshot: nothing is known to be missing, but a batch may be, so the first probe is due."""
        self._missing_seq, self._probe_due = None, 0.0

    def next_check(self) -> float | None:
        """The monotonic time of the next `take_lost` or `take_probe` that may say something."""
        if self._missing_seq is not None:
            return self._lost_at
        return None if self._probe_interval_s is None else self._probe_due

    def take_lost(self, applied_seq: int) -> int | None:
        """The batch that counts as lost by now, if one does; reported once."""
        if self._missing_seq is None:
            return None
        if self._missing_seq > applied_seq and time.monotonic() < self._lost_at:
            return None
        seq, self._missing_seq = self._missing_seq, None
        return seq if seq > applied_seq else None

    def take_probe(self) -> bool:
        """Whether it is time to ask for later batches; the next time is an interval away then."""
        is_due = (
            self._probe_interval_s is not None
            and self._missing_seq is None
            and time.monotonic() >= self._probe_due
        )
        if is_due:
            self.record_received()
        return is_due
