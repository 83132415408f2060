"""A file of keys that is read again when it changes."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from app.api.access.keys import Keys, parse_keys
from app.errors import ConfigError

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
"""Between two looks at a file, which only requests cause."""
_READABLE_BY_OTHERS = 0o077


class KeyFile:
    """The keys in a file, at most `LOOK_INTERVAL_S` old when a request asks for them.

    The content is compared, not times: a file that is replaced twice in a moment, or through a link as
    Kubernetes does it, is seen. One that breaks while the service runs is logged, and its last keys stay.

    Args:
        setting: where the settings name the file, for errors.
        path: the file.

    Raises:
        ConfigError: it can't be read, or isn't such a file.
    """

    def __init__(self, setting: str, path: Path) -> None:
        self._given = f"{setting} = {str(path)!r}"
        self._path = path
        self._fault = ""
        try:
            self._content = path.read_bytes()
            self.keys: Keys = parse_keys(self._content)
            self._warn_of_readers()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self._given}: {_why(error)}") from None
        self._looked_at = time.monotonic()
        self._looking = asyncio.Lock()

    async def look(self) -> None:
        """Have `keys` follow the file. Reading and parsing are done in a thread."""
        if self._looking.locked() or time.monotonic() < self._looked_at + LOOK_INTERVAL_S:
            return
        async with self._looking:
            await asyncio.to_thread(self._read_again)
            self._looked_at = time.monotonic()

    def _read_again(self) -> None:
        try:
            content = self._path.read_bytes()
            if content == self._content:
                self._fault = ""
                return
            keys = parse_keys(content)
            self._warn_of_readers()
        except (OSError, ValueError) as error:
            if (fault := _why(error)) != self._fault:
                logger.error("%s: %s; the keys that it had before stay in force", self._given, fault)
                self._fault = fault
            return
        self._content, self.keys, self._fault = content, keys, ""
        logger.info("%s: it was changed, and has %d keys now", self._given, len(keys))

    def _warn_of_readers(self) -> None:
        if self._path.stat().st_mode & _READABLE_BY_OTHERS:
            logger.warning("%s: others than its owner can get at these keys; chmod 600 it", self._given)


def _why(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
