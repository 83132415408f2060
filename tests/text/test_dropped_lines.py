"""Lines that are left out of system prompts: by which patterns, and what is left."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config import load_config
from app.errors import ConfigError
from app.text.dropped_lines import DroppedLines, LinePattern

BILLING = "x-anthropic-billing-header:*"
LINE = "x-anthropic-billing-header: cc_version=2.1.332.fb8; cc_entrypoint=cli; cch=a1b2c;"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (LINE, ""),
        (f"{LINE}\n", ""),
        (f"{LINE}\nYou are an agent.", "You are an agent."),
        (f"You are an agent.\n{LINE}", "You are an agent."),
        (f"a\n{LINE}\nb\n", "a\nb\n"),
        (f"a\r\n{LINE}\r\nb", "a\r\nb"),
        (f"{LINE}\n{LINE}\nb", "b"),
        ("x-anthropic-billing-header:", ""),
        (f"see {LINE}", f"see {LINE}"),
        (f" {LINE}", f" {LINE}"),
        (f"a\v{LINE}", f"a\v{LINE}"),
        ("", ""),
        ("a\n\nb\n", "a\n\nb\n"),
    ],
)
def test_whole_lines_are_dropped_with_their_breaks(text: str, left: str) -> None:
    rest, names = DroppedLines([BILLING]).drop(text)
    assert rest == left
    assert names == (("x_anthropic_billing_header",) if left != text else ())


def test_without_patterns_every_text_stays() -> None:
    assert DroppedLines().drop(LINE) == (LINE, ())


def test_each_pattern_is_named_once() -> None:
    dropped = DroppedLines([BILLING, "Today is *.", "never"])
    text = f"{LINE}\nToday is Monday.\nyes\n{LINE}\nToday is 2026-01-01."
    assert dropped.drop(text) == ("yes", ("x_anthropic_billing_header", "Today_is"))


@given(st.text("ab*", max_size=8), st.text("ab", max_size=12))
def test_a_star_is_any_text(pattern: str, line: str) -> None:
    expected = re.fullmatch(fnmatch.translate(pattern), line) is not None
    assert LinePattern(pattern).matches(line) == expected


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "'': String should have at least 1 character"),
        ("*", "text besides * is needed, or it would match every line"),
        (" ** ", "text besides * is needed, or it would match every line"),
        ("a\nb", "a pattern is of one line"),
        ("a" * 257, "String should have at most 256 characters"),
    ],
)
def test_a_pattern_that_is_none_is_a_config_error(pattern: str, why: str) -> None:
    with pytest.raises(ConfigError, match=r"args\.ingress\.dropped_system_lines") as caught:
        load_config({"ingress": {"dropped_system_lines": [pattern]}})
    assert why in str(caught.value)


def test_no_line_takes_long() -> None:
    """Where a regular expression would try every way of dividing the line, each piece is looked for once."""
    pattern = LinePattern("*".join(["a"] * 100) + "*b")
    assert not pattern.matches("a" * 1_000_000)
