"""Which paths need which key, and who asks.

path                                       with keys_file    with admin_keys_file alone
/health, OPTIONS                           none              none
/server_info, /model_info, their aliases   none, or any key (`server_info_needs_key`)
/router/*, /flush_cache                    an operator's     an operator's
all others, also those that there aren't   any key           none

With `keys_file` alone no key is an operator's: what needs one is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.api.access.key_file import KeyFile
from app.api.access.keys import MAX_KEY_CHARS, Key, digest_of
from app.api.access.limits import Allowance
from app.errors import NotAllowedError, NotAuthenticatedError
from app.settings.access import AccessConfig

OPEN = ("/health",)
DESCRIPTORS = ("/server_info", "/get_server_info", "/model_info", "/get_model_info")


class Access:
    """The keys of one ingress, and how much of their limits is used there.

    Args:
        config: names the files.
        num_ingresses: that share the limits.

    Raises:
        ConfigError: a file can't be read, or isn't one of keys.
    """

    def __init__(self, config: AccessConfig, num_ingresses: int) -> None:
        self._config = config
        self._num_ingresses = num_ingresses
        self._clients = _file("keys_file", config.keys_file)
        self._admins = _file("admin_keys_file", config.admin_keys_file)
        self._allowances: dict[tuple[KeyFile, str], Allowance] = {}

    async def caller(self, path: str, given: Sequence[str]) -> Allowance | None:
        """What the caller may ask for; None: anything.

        Args:
            path: as routes have it.
            given: the keys that the request has; the first that is known counts.

        Raises:
            NotAuthenticatedError: the path needs a key, and none of these is known.
            NotAllowedError: it needs an operator's, and this is a client's.
        """
        if not self._config.needs_keys or not self._needs_any(path):
            return None
        for file in filter(None, (self._admins, self._clients)):
            await file.look()
        if self._admins is not None and (admin := _known(self._admins, given)):
            return self._allowance(self._admins, admin)
        client = None if self._clients is None else _known(self._clients, given)
        if _is_operators(path):
            if client:
                raise NotAllowedError(f"{path} needs a key of ingress.access.admin_keys_file")
        elif self._clients is None and path not in DESCRIPTORS:
            return None
        if self._clients is None or client is None:
            raise _unknown(given)
        return self._allowance(self._clients, client)

    def _needs_any(self, path: str) -> bool:
        if path in DESCRIPTORS:
            return self._config.server_info_needs_key
        return path not in OPEN

    def _allowance(self, file: KeyFile, key: Key) -> Allowance:
        """The key's, as used so far unless its limits were changed."""
        place = (file, key.name)
        known = self._allowances.get(place)
        if known is None or known.limits != key.limits:
            known = self._allowances[place] = Allowance(key.name, key.limits, self._num_ingresses)
        return known


def check_key_files(config: AccessConfig) -> None:
    """Raises `ConfigError` as `Access` does."""
    Access(config, 1)


def _file(name: str, path: Path | None) -> KeyFile | None:
    return None if path is None else KeyFile(f"ingress.access.{name}", path)


def _known(file: KeyFile, given: Sequence[str]) -> Key | None:
    digests = (digest_of(key) for key in given if len(key) <= MAX_KEY_CHARS)
    return next(filter(None, map(file.keys.get, digests)), None)


def _is_operators(path: str) -> bool:
    return path in ("/flush_cache", "/router") or path.startswith("/router/")


def _unknown(given: Sequence[str]) -> NotAuthenticatedError:
    if given:
        return NotAuthenticatedError("the API key isn't one of this server's")
    return NotAuthenticatedError("an API key is needed: send `Authorization: Bearer KEY` or `x-api-key: KEY`")
