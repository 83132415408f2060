"""What is told of ignored fields, to the client and to the operator."""

from __future__ import annotations

import logging

import pytest

from app.deployments.ingress.ignored_fields import HEADER, MAX_LOGGED, IgnoredFields


def test_nothing_is_told_of_nothing() -> None:
    assert IgnoredFields().headers(()) == {}


def test_names_are_letters_digits_dots_and_underscores_and_the_header_has_an_end() -> None:
    told = IgnoredFields().headers(("opts", "messages.opts", "top-p", "a\r\nx: ü", "b" * 100))[HEADER]
    assert told == f"opts, messages.opts, top_p, a__x___, {'b' * 64}"
    assert len(IgnoredFields().headers([f"field_{number}" for number in range(500)])[HEADER]) == 512


def test_the_log_has_each_name_once_and_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    ignored = IgnoredFields()
    with caplog.at_level(logging.INFO, logger="ray.serve"):
        for _ in range(3):
            ignored.headers(("opts", "messages.opts"))
        assert [record.args for record in caplog.records] == [("opts",), ("messages.opts",)]
        for number in range(2 * MAX_LOGGED):
            ignored.headers((f"field_{number}",))
    assert len(caplog.records) == MAX_LOGGED
