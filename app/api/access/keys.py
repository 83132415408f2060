"""Keys: a file of them, and whose key a client has sent.

A file is YAML (or JSON, which is YAML too):

    keys:
      - name: alice
        key: sk-x8Jq…                 # at least 16 visible ASCII characters
        requests_per_minute: 600      # each limit may be left out
        concurrent_requests: 20
        tokens_per_minute: 200000
      - name: nightly
        sha256: 9f86d08…              # or the digest of a key: then the file holds no secret

Keys are kept as digests alone, under a secret of the process (HMAC). So no key can be logged, and the time
that a look-up takes says nothing about the keys that there are, however many.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import Field, SecretStr, ValidationError, model_validator

from app.api.access.limits import KeyLimits
from app.settings.base import Settings

MIN_KEY_CHARS, MAX_KEY_CHARS = 16, 512
MAX_FAULTS = 3
_KEY = re.compile(rf"[!-~]{{{MIN_KEY_CHARS},{MAX_KEY_CHARS}}}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SECRET = secrets.token_bytes(32)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built


@dataclass(frozen=True, slots=True)
class Key:
    """Whose key it is, and what it may ask for. The key itself isn't here."""

    name: str
    limits: KeyLimits


Keys = Mapping[bytes, Key]
"""By `digest_of` the key."""


class _Entry(KeyLimits):
    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._@-]+$")
    key: SecretStr | None = None
    sha256: SecretStr | None = None

    @model_validator(mode="after")
    def _has_one_key(self) -> _Entry:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("either key or sha256 is needed")
        if self.key is not None and not _KEY.fullmatch(self.key.get_secret_value()):
            raise ValueError(f"key: {MIN_KEY_CHARS} to {MAX_KEY_CHARS} visible ASCII characters are needed")
        if self.sha256 is not None and not _DIGEST.fullmatch(self.sha256.get_secret_value()):
            raise ValueError("sha256: 64 hexadecimal digits in lower case are needed")
        return self

    @property
    def digest(self) -> bytes:
        if self.key is not None:
            return digest_of(self.key.get_secret_value())
        assert self.sha256 is not None, "it is checked"
        return _under_secret(bytes.fromhex(self.sha256.get_secret_value()))


class _File(Settings):
    keys: tuple[_Entry, ...]


def digest_of(key: str) -> bytes:
    """What stands for a key in this process."""
    return _under_secret(hashlib.sha256(key.encode()).digest())


def parse_keys(content: bytes) -> Keys:
    """The keys in a file.

    Raises:
        ValueError: it isn't such a file. The message has the places, and nothing of a key.
    """
    document = _document(content)
    if not isinstance(document, dict) or document.keys() != {"keys"} or document["keys"] is None:
        raise ValueError("a mapping is needed that has the list `keys`, and nothing else")
    try:
        entries = _File.model_validate(document).keys
    except ValidationError as error:
        raise ValueError("; ".join(_faults(error))) from None
    found = {entry.digest: Key(entry.name, _limits_of(entry)) for entry in entries}
    names = {entry.name for entry in entries}
    if len(names) < len(entries):
        raise ValueError("keys: two have one name")
    if len(found) < len(entries):
        raise ValueError("keys: two names have one key")
    return found


def _document(content: bytes) -> Any:
    try:
        return yaml.load(content, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"it isn't YAML{where}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError("it isn't YAML") from None


def _limits_of(entry: _Entry) -> KeyLimits:
    return KeyLimits.model_validate({name: getattr(entry, name) for name in KeyLimits.model_fields})


def _faults(error: ValidationError) -> Iterator[str]:
    """Places and what is needed there: what is there may be a key."""
    details = error.errors(include_input=False, include_context=False, include_url=False)
    for detail in details[:MAX_FAULTS]:
        place = ".".join(map(str, detail["loc"]))
        # The name of an unknown field may be a key that slipped out of its place.
        known = detail["type"] != "extra_forbidden"
        allowed = ", ".join(_Entry.model_fields)
        yield f"{place}: {detail['msg']}" if known else f"{place.rpartition('.')[0]}: allowed are {allowed}"


def _under_secret(digest: bytes) -> bytes:
    return hmac.digest(_SECRET, digest, "sha256")
