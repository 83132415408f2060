"""Keys that our own programs send."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from app.config import load_config
from app.engine.remote.api.http import WorkerHttp
from app.errors import ConfigError
from app.misses import main
from app.settings.key_text import read_key

KEY = "sk-0123456789abcdef"


def test_a_key_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    assert read_key("there", path) == KEY


@pytest.mark.parametrize("content", ["", f"{KEY} two", f"{KEY}\n{KEY}", "é" * 20])
def test_what_is_no_key_isnt_shown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"^there = '.*key': one line of 1 to 512 visible ASCII") as refusal:
        read_key("there", path)
    assert KEY not in str(refusal.value)
    with pytest.raises(ConfigError, match="No such file"):
        read_key("there", tmp_path / "nothing")


@pytest.fixture
def asked() -> list[str | None]:
    """The `Authorization` of each request to `server`."""
    return []


@pytest.fixture
def url(asked: list[str | None]) -> str:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["authorization"])
            self.send_response(401)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)

    def answer_once() -> None:
        with server:
            server.handle_request()

    Thread(target=answer_once).start()
    return f"http://127.0.0.1:{server.server_port}"


def test_the_report_of_misses_sends_one(
    tmp_path: Path, url: str, asked: list[str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text(KEY)
    assert main([url, "--key-file", str(tmp_path / "key")]) == 1
    assert asked == [f"Bearer {KEY}"]
    assert main([url, "--key-file", str(tmp_path / "nothing")]) == 1
    assert "--key-file" in capsys.readouterr().err


async def test_a_remote_rank_sends_its_workers(url: str, asked: list[str | None]) -> None:
    async with WorkerHttp(url, KEY) as http:
        assert (await http.ask("/health")).status == 401
    assert asked == [f"Bearer {KEY}"]


def test_a_workers_key_is_read_when_it_is_needed(tmp_path: Path) -> None:
    worker = {"url": "http://a:1", "api_key_file": str(tmp_path / "key")}
    config = load_config({"remote_ranks": {"workers": [worker]}}).remote_ranks
    assert config is not None
    with pytest.raises(ConfigError, match=r"remote_ranks\.workers\.api_key_file"):
        config.workers[0].read_api_key()
    (tmp_path / "key").write_text(KEY)
    assert config.workers[0].read_api_key() == KEY
    with pytest.raises(ConfigError, match="an absolute path is needed"):
        load_config({"remote_ranks": {"workers": [worker | {"api_key_file": "key"}]}})
