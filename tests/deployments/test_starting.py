"""A replica that can't start says why: first, and in the log."""

from __future__ import annotations

import logging
import traceback

import pytest

from app.deployments.starting import check_num_ranks, says_why
from app.errors import ConfigError, EndpointInUseError


class Replica:
    """Refuses, or has a bug."""

    def __init__(self, error: Exception | None) -> None:
        with says_why("Replica"):
            if error is not None:
                raise error


def test_the_reason_is_the_first_line_and_the_last(caplog: pytest.LogCaptureFixture) -> None:
    try:
        Replica(EndpointInUseError("port 5557 is taken"))
    except EndpointInUseError:
        first, *_, last = traceback.format_exc().splitlines()
    assert first == last == "app.errors.EndpointInUseError: port 5557 is taken"
    assert caplog.record_tuples == [
        ("ray.serve", logging.CRITICAL, "Replica can't start: port 5557 is taken")
    ]


def test_other_errors_pass_as_they_are() -> None:
    assert Replica(None)
    error = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug") as caught:
        Replica(error)
    assert caught.value is error


def test_more_ranks_than_the_settings_have_are_refused() -> None:
    check_num_ranks(2, 2)
    check_num_ranks(0, 2)
    with pytest.raises(
        ConfigError, match=r"DPRank\.num_replicas = 3: set args\.dp_size, which is 2, instead"
    ):
        check_num_ranks(3, 2)
