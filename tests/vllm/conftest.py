"""Settings that vLLM reads from the environment, before any test imports it.

`make test-vllm` runs these tests, in an environment of their own. Where vLLM isn't installed they are left
out, and the report's head says so.
"""

from __future__ import annotations

import importlib.util
import os

import pytest

HAS_VLLM = importlib.util.find_spec("vllm") is not None
SETTINGS = {
    # Of the CPU build: GiB for the KV cache, and threads that move freely, since other tests run beside.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # It can't load on a CPU what it has compiled ahead, and tries for a minute.
    "VLLM_USE_AOT_COMPILE": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
if HAS_VLLM:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)

collect_ignore_glob = [] if HAS_VLLM else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    if HAS_VLLM:
        # It wraps a context for asyncio and destroys the wrapping one only.
        config.addinivalue_line("filterwarnings", "ignore:Unclosed context <zmq.Context:ResourceWarning")


def pytest_report_header() -> str:
    return "tests/vllm: " + ("vLLM is here" if HAS_VLLM else "left out, no vLLM here: `make test-vllm`")
