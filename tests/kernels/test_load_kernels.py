from __future__ import annotations

import logging

import pytest

from kernels import BackendError, load_kernels


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="kernels"):
        kernels = load_kernels("torch")
    assert kernels.name == "torch"
    assert [record.getMessage() for record in caplog.records] == ["kernels: torch"]


def test_an_unknown_backend_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(BackendError, match=r"kernels = 'triton': no such backend; allowed: reference, torch"):
        load_kernels("triton")
