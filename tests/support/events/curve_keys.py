"""Key files for tests of CURVE."""

from __future__ import annotations

from pathlib import Path

from zmq.auth import create_certificates

from app.events.curve import CurveClient, CurveConfig, KeyPair, load_router_keys
from app.events.publisher_info import PublisherInfo


class Keys:
    """Key files as docs/operations.md says to make them: a rank's, a router's, and those that may connect."""

    def __init__(self, folder: Path) -> None:
        self.allowed = folder / "clients"
        self.allowed.mkdir()
        self._made = folder / "made"
        self._made.mkdir()
        self.rank_file = self.make("rank")
        self.router_file = self.make("router")
        self.allow("router")

    @property
    def config(self) -> dict[str, str]:
        return {
            "secret_key_file": str(self.rank_file),
            "allowed_clients": str(self.allowed),
            "router_key_file": str(self.router_file),
        }

    @property
    def router(self) -> KeyPair:
        keys = load_router_keys(self.curve_config())
        assert keys is not None
        return keys

    def curve_config(self, **changes: str | None) -> CurveConfig:
        return CurveConfig.model_validate(self.config | changes)

    def make(self, name: str) -> Path:
        file = Path(create_certificates(self._made, name)[1])
        file.chmod(0o600)
        return file

    def allow(self, name: str) -> None:
        (self.allowed / f"{name}.key").write_bytes((self._made / f"{name}.key").read_bytes())

    def forbid(self, name: str) -> None:
        (self.allowed / f"{name}.key").unlink()


def curve_client(info: PublisherInfo, keys: KeyPair) -> CurveClient:
    """How a client with `keys` connects to this publisher."""
    assert info.address.curve_public_key is not None
    return CurveClient(keys, info.address.curve_public_key.encode())
