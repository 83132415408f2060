"""Tells which fields of a request were ignored: to its client in a header, to the operator once in the log.

Their names are a client's, so only letters, digits, dots and underscores of them are written.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

logger = logging.getLogger("ray.serve")

HEADER = "x-kvbeacon-ignored-fields"
MAX_HEADER_CHARS = 512
MAX_NAME_CHARS = 64
MAX_LOGGED = 1000
"""Names that are remembered, and logged, by one ingress."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._]")


def ignored_header(fields: Sequence[str]) -> dict[str, str]:
    """The answer's header for these fields; none for none."""
    names = [_written(field) for field in fields[:MAX_LOGGED]]
    return {HEADER: ", ".join(names)[:MAX_HEADER_CHARS]} if names else {}


def _written(field: str) -> str:
    return _UNSAFE.sub("_", field[:MAX_NAME_CHARS])


class IgnoredFields:
    """Remembers which names the log has."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def headers(self, fields: Sequence[str]) -> dict[str, str]:
        """The answer's header for these fields; none for none. New ones are logged."""
        self._log([_written(field) for field in fields[:MAX_LOGGED]])
        return ignored_header(fields)

    def _log(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._logged and len(self._logged) < MAX_LOGGED:
                self._logged.add(name)
                logger.info("field %s of a request is ignored; this is logged once", name)
