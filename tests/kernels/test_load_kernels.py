from __future__ import annotations

import logging

import pytest
import torch

from kernels.backends import BACKENDS, CPU, BackendError, load_kernels
from tests.kernels.harness import Backend, run_uninterpreted


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="kernels"):
        kernels = load_kernels("torch")
    assert kernels.name == "torch"
    assert [record.getMessage() for record in caplog.records] == ["kernels: torch on cpu"]


def test_auto_on_a_cpu_is_cpu_or_else_torch_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    why_not_cpu = BACKENDS["cpu"].why_not(CPU)
    with caplog.at_level(logging.INFO, logger="kernels"):
        chosen = load_kernels("auto", CPU).name
    expected = ("cpu", "") if why_not_cpu is None else ("torch", f"; not cpu: {why_not_cpu}")
    assert chosen == expected[0]
    said = f"kernels: {expected[0]} on cpu, chosen by auto{expected[1]}"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_auto_on_a_gpu_is_triton(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="kernels"):
        assert load_kernels("auto", torch.device("cuda", 0)).name == "triton"
    assert [record.getMessage() for record in caplog.records] == ["kernels: triton on cuda:0, chosen by auto"]


def test_an_unknown_backend_is_refused_with_what_is_allowed() -> None:
    allowed = "auto, reference, torch, cpu, triton"
    with pytest.raises(BackendError, match=f"kernels = 'cuda': no such backend; allowed: {allowed}"):
        load_kernels("cuda")


LOAD_TRITON = """
from kernels.backends import BackendError, load_kernels
try:
    load_kernels("triton")
except BackendError as error:
    print(error)
"""


def test_triton_on_a_cpu_without_its_interpreter_is_refused() -> None:
    needs = "it runs on cuda; cpu needs TRITON_INTERPRET=1, set before triton is imported"
    assert run_uninterpreted("-c", LOAD_TRITON) == f"kernels = 'triton': {needs}\n"


def test_triton_that_is_not_installed_is_refused_and_not_missed_by_others() -> None:
    hidden = "import sys\nsys.modules['triton'] = None\n"
    auto = "import torch\nprint(load_kernels('auto', torch.device('cuda')).name)"
    assert run_uninterpreted("-c", hidden + LOAD_TRITON + auto).splitlines() == [
        "kernels = 'triton': triton is not installed (pip install 'kvbeacon[triton]')",
        "torch",
    ]


def test_every_backend_has_the_name_it_is_loaded_by(backend: Backend) -> None:
    assert backend.kernels.name == backend.name
