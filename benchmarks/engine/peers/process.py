"""The parent's side of a peer: start it, ask it, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

REPO = Path(__file__).parents[3]


class PeerError(Exception):
    """A peer could not be started, or died."""


class Peer:
    """One engine in a process of its own.

    Args:
        name: what the report calls it.
        command: started in the repository's root.
        environment: what it needs there besides this process's own.
    """

    def __init__(self, name: str, command: Sequence[str], **environment: str) -> None:
        self.name = name
        # Open as long as the process runs.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            cwd=REPO,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def wait_until_ready(self) -> None:
        """Wait until it has loaded. Raises `PeerError` when it ends instead."""
        self._read()

    def seconds(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> float:
        """Seconds that it takes to answer all prompts at once with `max_tokens` tokens each."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "max_tokens": max_tokens}) + "\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            raise PeerError(f"{self.name} ended with status {status}: {self._log.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def kvbeacon(model_dir: Path, dtype: str, threads: int, kernels: str) -> Peer:
    """This project's engine."""
    module = "benchmarks.engine.peers.kvbeacon"
    return Peer("kvbeacon", [sys.executable, "-m", module, str(model_dir), dtype, str(threads), kernels])


def transformers(model_dir: Path, dtype: str, threads: int) -> Peer:
    """Hugging Face's reference."""
    module = "benchmarks.engine.peers.transformers"
    return Peer("transformers", [sys.executable, "-m", module, str(model_dir), dtype, str(threads)])


def vllm(python: Path, model_dir: Path, dtype: str, threads: int) -> Peer:
    """vLLM, in the environment that `python` belongs to."""
    return Peer(
        "vllm",
        [str(python), "-m", "benchmarks.engine.peers.vllm", str(model_dir), dtype],
        OMP_NUM_THREADS=str(threads),
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
    )
