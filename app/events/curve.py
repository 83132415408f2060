"""CURVE: the key files of ranks and routers, and what a socket needs to connect to a rank that encrypts.

    rank:    its secret key, and the folder of the public keys that may connect
    router:  a secret key of its own; a rank's public key is in the rank's `PublisherInfo`

Files are those that pyzmq writes (`zmq.auth.create_certificates`): NAME.key with the public key,
NAME.key_secret with both. ZMQ's CURVE (RFC 25, RFC 26) encrypts and authenticates both ways: a client with
another server key, or with a key that isn't allowed, gets no message and can send none.
"""

from __future__ import annotations

import logging
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from pydantic import Field, field_validator
from zmq.auth import load_certificate
from zmq.utils import z85

from app.errors import ConfigError
from app.settings.base import Settings

logger = logging.getLogger(__name__)

HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
"""What a socket's monitor reports of a failed handshake, on either side."""
_WHERE = "kv_events_config.curve"
_KEY_CHARACTERS = 40
_READABLE_BY_OTHERS = 0o077


class CurveConfig(Settings):
    """Where the key files lie: paths on the node of the process that reads them, never keys.

    The whole `kv_events_config` is shown in `/server_info`.
    """

    secret_key_file: Path = Field(description="The ranks' certificate with its secret key.")
    allowed_clients: Path = Field(description="Folder of the public certificates (*.key) that may connect.")
    router_key_file: Path | None = Field(
        None,
        description="The routers' certificate with its secret key; null: no router of ours can follow.",
    )

    @field_validator("*")
    @classmethod
    def _is_absolute(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_absolute():
            raise ValueError("allowed is an absolute path: processes on many nodes read it")
        return path


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair, each key 40 characters of z85."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CurveClient:
    """How to connect to one rank that encrypts: our own `keys`, and the rank's public key."""

    keys: KeyPair
    server_key: bytes

    def secure(self, socket: zmq.Socket[Any]) -> None:
        """Let `socket`, not yet connected, connect to that rank only."""
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret)
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server_key)


def load_rank_keys(config: CurveConfig) -> KeyPair:
    """The ranks' keys; the other files are checked as far as a rank can read them.

    Raises:
        ConfigError: a file is missing or isn't what it must be, no client is allowed, or our routers aren't.
    """
    keys = _load_keys("secret_key_file", config.secret_key_file)
    _check_router_is_allowed(config, load_allowed(config))
    return keys


def load_router_keys(config: CurveConfig) -> KeyPair | None:
    """The routers' keys, None if no file is named.

    Raises:
        ConfigError: the file is missing or holds no key pair.
    """
    file = config.router_key_file
    return None if file is None else _load_keys("router_key_file", file)


def check_key_files(config: CurveConfig) -> list[Path]:
    """Check the files that are readable on this machine as ranks and routers will; returns the others.

    Raises:
        ConfigError: as `load_rank_keys` and `load_router_keys`.
    """
    paths = (config.secret_key_file, config.allowed_clients, config.router_key_file)
    unreadable = [path for path in paths if path is not None and not _is_readable(path)]
    if config.secret_key_file not in unreadable:
        _load_keys("secret_key_file", config.secret_key_file)
    if config.allowed_clients not in unreadable:
        _check_router_is_allowed(config, load_allowed(config))
    elif config.router_key_file not in unreadable:
        load_router_keys(config)
    return unreadable


def load_allowed(config: CurveConfig) -> set[bytes]:
    """The public keys that may connect.

    Raises:
        ConfigError: there is no such folder, it has no *.key file, or one of them holds no public key.
    """
    given = f"{_WHERE}.allowed_clients = {str(config.allowed_clients)!r}"
    if not config.allowed_clients.is_dir():
        raise ConfigError(f"{given}: no such folder; allowed is a folder of public certificates (*.key)")
    keys, faults = read_public_keys(config.allowed_clients)
    if faults:
        raise ConfigError(f"{given}: {'; '.join(faults)}; allowed are public certificates only")
    if not keys:
        raise ConfigError(f"{given}: the folder has no *.key file; no client could connect")
    return keys


def read_public_keys(folder: Path) -> tuple[set[bytes], list[str]]:
    """The public keys in the *.key files of `folder`, and what is wrong with those that hold none."""
    keys: set[bytes] = set()
    faults: list[str] = []
    for file in sorted(folder.glob("*.key")):
        try:
            keys.add(_read_certificate(file)[0])
        except (OSError, ValueError) as error:
            faults.append(f"{file.name}: {error}")
    return keys, faults


def _check_router_is_allowed(config: CurveConfig, allowed: set[bytes]) -> None:
    file = config.router_key_file
    if file is None or not _is_readable(file):
        return  # a secret of the routers' nodes; it is checked there
    public = _load_keys("router_key_file", file).public
    if public not in allowed:
        raise ConfigError(
            f"{_WHERE}.router_key_file = {str(file)!r}: its public key {public.decode()} is in no *.key file "
            f"of allowed_clients = {str(config.allowed_clients)!r}, so the ranks would refuse it"
        )


def _load_keys(name: str, file: Path) -> KeyPair:
    given = f"{_WHERE}.{name} = {str(file)!r}"
    try:
        public, secret = _read_certificate(file)
        if secret is None:
            raise ValueError("there is no secret-key in it")
        if zmq.curve_public(secret) != public:
            raise ValueError("its public-key isn't the one of its secret-key")
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{given}: {error}; allowed is a certificate with its secret key (NAME.key_secret), "
            f"as zmq.auth.create_certificates writes it"
        ) from None
    if mode & _READABLE_BY_OTHERS:
        logger.warning("%s: others than its owner can get at this secret key; chmod 600 it", given)
    return KeyPair(public, secret)


def _read_certificate(file: Path) -> tuple[bytes, bytes | None]:
    """Public and secret key; raises OSError, or ValueError that says what is wrong without showing a key."""
    try:
        public, secret = load_certificate(file)
    except IndexError:
        raise ValueError("a key has no = before it") from None
    if not is_key(public):
        raise ValueError(f"its public-key isn't {_KEY_CHARACTERS} characters of z85")
    if secret is not None and not is_key(secret):
        raise ValueError(f"its secret-key isn't {_KEY_CHARACTERS} characters of z85")
    return public, secret


def is_key(key: bytes) -> bool:
    """Whether it is a CURVE key in z85."""
    try:
        return len(key) == _KEY_CHARACTERS and bool(z85.decode(key))
    except (KeyError, ValueError, struct.error):
        return False


def _is_readable(path: Path) -> bool:
    return os.access(path, os.R_OK)
