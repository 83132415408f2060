"""`python -m app.misses`: what it prints, and what it says where there is nothing to print."""

from __future__ import annotations

import pytest

from app.hashing import tenant_label
from app.misses import main, report
from tests.support.free_ports import find_free_ports

PLACE = {
    "token": 38,
    "message": 0,
    "role": "system",
    "line": 2,
    "before": "12:01:33.",
    "after": "12:01:47.",
    "around": ["The time is ", "\nYou are"],
}
ANSWER = {
    "missed_tokens": {"new": 100, "volatile": 800, "lost": 0},
    "prompt_tokens": 1000,
    "requests": 7,
    "rows": [
        {"tenant": None, "reason": "volatile", "tokens": 800, "requests": 3, "place": PLACE, "rank": None},
        {
            "tenant": tenant_label("a"),
            "reason": "evicted",
            "tokens": 60,
            "requests": 2,
            "place": None,
            "rank": 1,
        },
        {
            "tenant": None,
            "reason": "diverged",
            "tokens": 16,
            "requests": 1,
            "place": {"token": 0},
            "rank": None,
        },
        {"tenant": None, "reason": "new", "tokens": 100, "requests": 5, "place": None, "rank": None},
    ],
}


def test_reasons_and_places_are_printed_worst_first() -> None:
    lines = report(ANSWER).splitlines()
    assert lines[:3] == [
        "7 requests, 1000 prompt tokens, 900 of them missed",
        "  volatile             800   80.0%",
        "  new                  100   10.0%",
    ]
    assert lines[5:] == [
        "           800         3  volatile  -         token 38, message 0 (system), line 2, "
        "'The time is ' ['12:01:33.' → '12:01:47.'] '\\nYou are'",
        f"            60         2  evicted   {tenant_label('a'):<10}rank 1",
        "            16         1  diverged  -         token 0",
        "           100         5  new       -         ",
    ]


def test_one_tenants_rows_can_be_asked_for_by_its_name() -> None:
    assert len(report(ANSWER, "a").splitlines()) == 6
    assert len(report(ANSWER, "b").splitlines()) == 5


def test_a_service_that_does_not_answer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{find_free_ports(1)}"
    assert main([url]) == 1
    assert url in capsys.readouterr().err


def test_an_address_without_a_scheme_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["localhost:8000"])
    assert "it begins with http:// or https://" in capsys.readouterr().err
