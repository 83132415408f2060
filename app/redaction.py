"""Settings as they may be shown: to clients, in errors and in logs, without what may be secret in them.

The documents of other programs that a config holds (vLLM's engine arguments) may have keys and passwords, and
a URL may have a user's. Names and URLs are all there is to tell them by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r".*(token|secret|passw\w*|passphrase|credentials?|authorization|key|key_?id)", re.IGNORECASE
)
_USER_IN_URL = re.compile(r"(?<=://)\S*@")
"""Up to the last @: a password may have some, and be no valid part of a URL."""


def redacted(value: Any) -> Any:
    """`value` with secrets, in whatever mapping or list below it, replaced by `HIDDEN`."""
    if isinstance(value, str):
        return _USER_IN_URL.sub(f"{HIDDEN}@", value)
    if isinstance(value, Mapping):
        return {name: HIDDEN if _is_secret(name, inner) else redacted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return value


def _is_secret(name: Any, value: Any) -> bool:
    """Null and true aren't: they say that there is none, or that it is elsewhere."""
    is_said = value is not None and not isinstance(value, bool)
    return is_said and isinstance(name, str) and _SECRET_NAME.fullmatch(name) is not None
