"""Hub ids: with a cache in Hugging Face's layout, with a hub on loopback, and without a network."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from app.models.hub import is_hub_id

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {"config.json": b"{}", "tokenizer.json": b"{}", "chat_template.jinja": b"hi"}
INDEX = json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}).encode()
SHARDS = {"part-1.safetensors": b"one", "part-2.safetensors": b"two"}
NOT_NEEDED = {"README.md": b"#", "pytorch_model.bin": b"pickle", "onnx/config.json": b"{}"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Qwen/Qwen3-0.6B", True),
        ("HuggingFaceTB/SmolLM2-135M_x", True),
        ("name", False),
        ("/models/name", False),
        ("./name", False),
        ("../name", False),
        ("~/name", False),
        ("a/b/c", False),
        ("a/", False),
    ],
)
def test_what_an_id_looks_like(path: str, expected: bool) -> None:
    assert is_hub_id(path) is expected


def resolve(repo_id: str, cache: Path, endpoint: str, **environment: str) -> tuple[str, str]:
    """What `python -m app.models.store` prints: stdout and stderr.

    It runs in a process of its own, since huggingface_hub reads its settings when it is imported.
    """
    done = subprocess.run(
        [sys.executable, "-m", "app.models.store", repo_id],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": endpoint} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.strip(), done.stderr


def make_snapshot(cache: Path, repo_id: str, *names: str) -> Path:
    """As huggingface_hub lays it out: blobs by their hash, linked to from a commit's folder."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    for part in (folder, repository / "blobs", repository / "refs"):
        part.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name in names:
        blob = repository / "blobs" / hashlib.sha256(name.encode()).hexdigest()
        blob.write_text("{}")
        (folder / name).symlink_to(os.path.relpath(blob, folder))
    return folder


NOWHERE = "http://127.0.0.1:9"  # the discard port, where no server listens


def test_a_cached_snapshot_needs_no_network(tmp_path: Path) -> None:
    folder = make_snapshot(tmp_path, "org/name", "config.json", "tokenizer.json", "model.safetensors")
    assert resolve("org/name", tmp_path, NOWHERE) == (str(folder), "")


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}])
@pytest.mark.parametrize("names", [(), ("config.json", "tokenizer.json")])
def test_without_network(tmp_path: Path, environment: dict[str, str], names: tuple[str, ...]) -> None:
    if names:
        make_snapshot(tmp_path, "org/name", *names)
    out, err = resolve("org/name", tmp_path, NOWHERE, **environment)
    assert out == ""
    assert "error: model.path = 'org/name': " in err
    assert "`hf download org/name`" in err
    assert "set model.path to a local folder" in err


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hub that downloads use; it has `org/one` and `org/sharded`."""

    repositories: ClassVar = {
        "org/one": SMALL | NOT_NEEDED | {"model.safetensors": b"whole"},
        "org/sharded": SMALL | NOT_NEEDED | SHARDS | {"model.safetensors.index.json": INDEX},
        "org/pickled": SMALL | NOT_NEEDED,
    }

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        organisation, name, kind, *rest = parts[2 if is_api else 0 :]
        files = self.repositories.get(f"{organisation}/{name}")
        if files is None:
            self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"})
        elif is_api and kind == "revision":
            self.answer(json.dumps({"id": f"{organisation}/{name}", "sha": COMMIT}).encode())
        elif is_api and kind == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            self.answer(json.dumps(entries).encode())
        else:
            content = files["/".join(rest[1:])]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.answer(content, headers={"ETag": etag, "X-Repo-Commit": COMMIT})

    def answer(self, content: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("repo_id", "weights"),
    [
        ("org/one", {"model.safetensors"}),
        ("org/sharded", {"model.safetensors.index.json", *SHARDS}),
    ],
)
def test_only_the_needed_files_are_downloaded(
    tmp_path: Path, endpoint: str, repo_id: str, weights: set[str]
) -> None:
    out, err = resolve(repo_id, tmp_path, endpoint)
    folder = Path(out)
    assert {str(file.relative_to(folder)) for file in folder.rglob("*")} == SMALL.keys() | weights, err
    assert resolve(repo_id, tmp_path, NOWHERE)[0] == out


@pytest.mark.parametrize(
    ("repo_id", "message"),
    [("org/none", "not to be had from the Hugging Face Hub"), ("org/pickled", "has no model.safetensors")],
)
def test_what_the_hub_does_not_have(tmp_path: Path, endpoint: str, repo_id: str, message: str) -> None:
    out, err = resolve(repo_id, tmp_path, endpoint)
    assert out == ""
    assert f"error: model.path = '{repo_id}'" in err
    assert message in err
