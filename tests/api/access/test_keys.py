"""Files of keys: what they may hold, and that nothing of a key is shown."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path

import pytest

from app.api.access import key_file
from app.api.access.key_file import KeyFile
from app.api.access.keys import digest_of, parse_keys
from app.errors import ConfigError

KEY, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"
ONE = f"keys: [{{name: one, key: {KEY}}}]"


def test_a_key_is_in_the_file_itself_or_by_its_digest() -> None:
    content = f"""
keys:
  - name: alice
    key: {KEY}
    requests_per_minute: 60
    concurrent_requests: 4
    tokens_per_minute: 1000
  - {{name: ci, sha256: {hashlib.sha256(OTHER.encode()).hexdigest()}}}
"""
    keys = parse_keys(content.encode())
    alice, ci = keys[digest_of(KEY)], keys[digest_of(OTHER)]
    assert (alice.name, alice.limits.requests_per_minute, alice.limits.tokens_per_minute) == (
        "alice",
        60,
        1000,
    )
    assert (ci.name, ci.limits.concurrent_requests) == ("ci", None)
    assert KEY not in repr(keys)
    assert digest_of(KEY + "x") not in keys


def test_json_is_taken_and_so_is_nobody() -> None:
    assert len(parse_keys(b'{"keys": [{"name": "a", "key": "sk-0123456789abcdef"}]}')) == 1
    assert parse_keys(b"keys: []") == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "a mapping is needed that has the list `keys`"),
        ("keys:", "a mapping is needed"),
        (KEY, "a mapping is needed"),
        (f"- {KEY}", "a mapping is needed"),
        (f"keys: [{{name: one, key: {KEY}}}", "it isn't YAML in line"),
        ("\x00", "it isn't YAML"),
        ("keys: [[]]", "keys.0: "),
        ("keys: [{name: one}]", "keys.0: Value error, either key or sha256 is needed"),
        ("keys: [{name: one, key: short-secret}]", "16 to 512 visible ASCII characters"),
        ("keys: [{name: one, key: 12345678901234567890}]", "keys.0.key: Input should be a valid string"),
        (f"keys: [{{name: one, sha256: {KEY}}}]", "64 hexadecimal digits"),
        (f"keys: [{{name: 'a b', key: {KEY}}}]", "keys.0.name"),
        (f"keys: [{{name: one, {KEY}: 1}}]", "keys.0: allowed are requests_per_minute"),
        (f"keys: [{{name: one, key: {KEY}, tokens_per_minute: 0}}]", "keys.0.tokens_per_minute"),
        (f"keys: [{{name: a, key: {KEY}}}, {{name: a, key: {OTHER}}}]", "two have one name"),
        (f"keys: [{{name: a, key: {KEY}}}, {{name: b, key: {KEY}}}]", "two names have one key"),
    ],
)
def test_what_is_no_file_of_keys_is_refused_without_showing_it(content: str, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        parse_keys(content.encode())
    assert says in str(refusal.value)
    for secret in (KEY, OTHER, "short-secret", "12345678901234567890"):
        assert secret not in str(refusal.value)


def test_a_missing_or_broken_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^here = '.*nothing': No such file or directory$"):
        KeyFile("here", tmp_path / "nothing")
    (tmp_path / "broken").write_text(KEY)
    with pytest.raises(ConfigError, match=r"^here = '.*broken': a mapping is needed") as refusal:
        KeyFile("here", tmp_path / "broken")
    assert KEY not in str(refusal.value)


async def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_file, "LOOK_INTERVAL_S", 0.0)
    caplog.set_level(logging.INFO)
    path = tmp_path / "keys.yaml"
    path.write_text(ONE)
    path.chmod(0o600)
    file = KeyFile("here", path)
    path.write_text(ONE.replace(KEY, OTHER))  # of the same length, and within one tick of the clock
    await file.look()
    assert list(file.keys) == [digest_of(OTHER)]
    path.write_text("broken")
    for _ in range(3):
        await file.look()
    path.unlink()
    await file.look()
    assert list(file.keys) == [digest_of(OTHER)]
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR", "ERROR"]
    path.write_text(ONE)
    await file.look()
    assert list(file.keys) == [digest_of(KEY)]
    assert KEY not in caplog.text
    assert OTHER not in caplog.text
    assert "chmod 600" in caplog.text  # the file that was written last can be read by all


async def test_many_requests_cause_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(ONE)
    file = KeyFile("here", path)
    path.write_text(ONE.replace(KEY, OTHER))
    await file.look()
    assert list(file.keys) == [digest_of(KEY)]  # it was read a moment ago
    monkeypatch.setattr(key_file, "LOOK_INTERVAL_S", 0.0)
    await asyncio.gather(*(file.look() for _ in range(100)))
    assert list(file.keys) == [digest_of(OTHER)]
