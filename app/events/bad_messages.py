"""Counts what can't be used, and logs it at a limited rate."""

from __future__ import annotations

import logging
import time

_LOG_EVERY_S = 10.0


class BadMessages:
    """Counts messages, or what else `what` names, that can't be used, and logs one of them now and then."""

    def __init__(self, logger: logging.Logger, source: str, what: str = "bad message from") -> None:
        self.count = 0
        self._logger = logger
        self._source = source
        self._what = what
        self._logged_at = -_LOG_EVERY_S

    def add(self, why: object) -> None:
        """One more, bad because of `why`."""
        self.count += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            self._logger.warning("%s %s (%d so far): %s", self._what, self._source, self.count, why)
