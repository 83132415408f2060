"""Which path needs which key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from app.api.access.access import Access
from app.check import IMPORT_PATH, check
from app.errors import ConfigError, NotAllowedError, NotAuthenticatedError
from app.settings.access import AccessConfig
from app.validation import validate
from tests.support.free_ports import find_free_ports

CLIENT, ADMIN, WRONG = "sk-client-0123456789", "sk-admin-0123456789", "sk-wrong-0123456789"
PATHS = (
    "/health",
    "/server_info",
    "/v1/models",
    "/v1/chat/completions",
    "/nothing",
    "/flush_cache",
    "/router/ranks",
)


def access(folder: Path, *, clients: bool = False, admins: bool = False, **settings: Any) -> Access:
    files = {"keys_file": (clients, CLIENT), "admin_keys_file": (admins, ADMIN)}
    for setting, (is_wanted, key) in files.items():
        if is_wanted:
            path = folder / setting
            path.write_text(f"keys: [{{name: some, key: {key}, requests_per_minute: 5}}]")
            path.chmod(0o600)
            settings[setting] = path
    return Access(AccessConfig(**settings), 1)


async def results(of: Access, *given: str) -> str:
    """For each of `PATHS`: free, limited, or refused."""
    letters = []
    for path in PATHS:
        try:
            letters.append("f" if await of.caller(path, given) is None else "l")
        except NotAuthenticatedError:
            letters.append("?")
        except NotAllowedError:
            letters.append("!")
    return "".join(letters)


@pytest.mark.parametrize(
    ("files", "without", "client", "admin"),
    [
        ({}, "fffffff", "fffffff", "fffffff"),
        ({"clients": True}, "ff?????", "fflll!!", "ff?????"),
        ({"admins": True}, "fffff??", "fffff??", "fflllll"),
        ({"clients": True, "admins": True}, "ff?????", "fflll!!", "fflllll"),
        ({"clients": True, "admins": True, "server_info_needs_key": True}, "f??????", "fllll!!", "fllllll"),
        ({"admins": True, "server_info_needs_key": True}, "f?fff??", "f?fff??", "fllllll"),
    ],
)
async def test_paths_and_keys(
    tmp_path: Path, files: dict[str, bool], without: str, client: str, admin: str
) -> None:
    of = access(tmp_path, **files)
    assert await results(of) == without
    assert await results(of, WRONG) == without
    assert await results(of, "x" * 10**6) == without
    assert await results(of, CLIENT) == client
    assert await results(of, WRONG, CLIENT) == client
    assert await results(of, ADMIN) == admin


async def test_a_key_keeps_what_it_has_used_until_its_limits_change(tmp_path: Path) -> None:
    of = access(tmp_path, clients=True)
    first = await of.caller("/v1/models", [CLIENT])
    assert first is not None
    assert await of.caller("/v1/models", [CLIENT]) is first


def test_settings() -> None:
    with pytest.raises(
        ConfigError, match="server_info_needs_key = True: keys_file or admin_keys_file is needed"
    ):
        validate(AccessConfig, {"server_info_needs_key": True}, where="access")
    with pytest.raises(ConfigError, match="allowed is an absolute path"):
        validate(AccessConfig, {"keys_file": "keys.yaml"}, where="access")


@pytest.mark.parametrize("setting", ["keys_file", "admin_keys_file"])
def test_the_check_before_a_start_reads_the_files(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "keys.yaml"
    application = {
        "name": "kvbeacon",
        "import_path": IMPORT_PATH,
        "args": {"ingress": {"access": {setting: str(path)}}},
    }
    file = tmp_path / "serve_config.yaml"
    http = {"port": find_free_ports(1)}
    file.write_text(yaml.safe_dump({"http_options": http, "applications": [application]}))
    with pytest.raises(ConfigError, match=rf"^ingress\.access\.{setting} = '.*': No such file or directory$"):
        check(file)
    path.write_text("keys: [{name: some}]")
    with pytest.raises(ConfigError, match=r"keys\.0: .* either key or sha256 is needed$"):
        check(file)
