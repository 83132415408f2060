"""The one block hash: a chained sha256 over full blocks of token ids, as SGLang computes it.

    digest_i = sha256(digest_{i-1} ‖ block_i's token ids as uint32 little-endian)

The root's parent is empty, or a seed made from the request's cache salt (and its tenant). The chain carries
all 32 bytes; on the wire and in the routers' index a block is named by the first 8, read as a big-endian
signed int64. Equal prompts therefore have equal names on every rank and machine.
"""

from __future__ import annotations

import array
import hashlib
import sys
from collections.abc import Iterable, Sequence
from struct import Struct

ROOT = b""
MAX_SALT_CHARS = 256
"""Characters of a salt that a request's body may carry."""
MAX_TENANT_SALT_CHARS = 2 * MAX_SALT_CHARS
"""Characters of the salt of a tenant's request, see `tenant_salt`."""
WORKER_SALT_CHARS = 128
"""Characters of a salt that every worker by URL takes in a request's body; vLLM allows no more."""
_INT64 = Struct(">q")
_SALT_PREFIX = b"sglang-cache-salt-v1\0"
_TENANT_PREFIX = b"kvbeacon-tenant-salt-v1\0"
_LABEL_PREFIX = b"kvbeacon-tenant-label-v1\0"


def seed(cache_salt: str | None) -> bytes:
    """The parent digest of a first block: empty, or 32 bytes that separate a salt's blocks from others."""
    if cache_salt is None:
        return ROOT
    return hashlib.sha256(_SALT_PREFIX + cache_salt.encode()).digest()


def tenant_salt(tenant: str, cache_salt: str | None, num_chars: int = 2 * MAX_SALT_CHARS) -> str:
    """The salt of a tenant's request, which takes the place of the one that its body may have.

        shake_256(prefix ‖ length of the name as uint32 little-endian ‖ name ‖ [ "\\0" ‖ the body's salt ])

    The length (in bytes) comes first, so the hashed bytes can be parsed in one way only, and no two pairs of
    name and body's salt have a salt in common. The result is hexadecimal digits, by default twice as many
    as a body's salt may have characters: no body's salt equals a tenant's. (Only SGLang's native API takes
    one that long, from a server that passes its tenant's on. In front of workers by URL, tenants' salts have
    `WORKER_SALT_CHARS`.)
    """
    name = tenant.encode()
    own = b"" if cache_salt is None else b"\0" + cache_salt.encode()
    scope = _TENANT_PREFIX + len(name).to_bytes(4, "little") + name + own
    return hashlib.shake_256(scope).hexdigest(num_chars // 2)


def tenant_label(tenant: str) -> str:
    """What a tenant is called in tables: 8 hexadecimal digits, of which its name can't be told.

    sha256(prefix ‖ name)
    """
    return hashlib.sha256(_LABEL_PREFIX + tenant.encode()).hexdigest()[:8]


def chain(token_ids: Sequence[int], block_size: int, parent_digest: bytes = ROOT) -> list[bytes]:
    """Digests of the full blocks of `token_ids`; a last partial block has none.

    Returns:
        `len(token_ids) // block_size` digests of 32 bytes.

    Raises:
        OverflowError: a token id is negative or does not fit 32 bits.
    """
    data = token_bytes(token_ids)
    width = 4 * block_size
    digests = []
    for start in range(0, len(data) - width + 1, width):
        parent_digest = hashlib.sha256(parent_digest + data[start : start + width]).digest()
        digests.append(parent_digest)
    return digests


def wire_hash(digest: bytes) -> int:
    """A digest's name on the wire: its first 8 bytes as a big-endian signed int64."""
    name: int
    (name,) = _INT64.unpack_from(digest)
    return name


def wire_hashes(digests: Iterable[bytes]) -> list[int]:
    """The names of many digests."""
    unpack_from = _INT64.unpack_from
    return [unpack_from(digest)[0] for digest in digests]


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """Token ids as uint32 little-endian. Raises `OverflowError` as `chain` does."""
    packed = array.array("I", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
