"""`python -m app.drain` where nothing drains; tests/integration drains real services."""

from __future__ import annotations

import pytest

from app.drain import main
from tests.support.free_ports import find_free_ports


def test_no_cluster_is_one_line_that_names_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"http://127.0.0.1:{find_free_ports(1)}"
    assert main(["--address", address]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith(f"{address}: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("timeout", ["-1", "nan", "inf", "soon"])
def test_a_timeout_that_is_no_time_is_refused(timeout: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--timeout", timeout])
    assert f"argument --timeout: invalid seconds value: '{timeout}'" in capsys.readouterr().err
