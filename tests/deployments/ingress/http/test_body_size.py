"""How many values a body has, counted before it is parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.deployments.ingress.http import body_size
from app.deployments.ingress.http.body_size import MORE_VALUES, check_size
from app.errors import PromptTooLongError

STRINGS = st.text(st.sampled_from('\\",[{}]a:é'), max_size=9)
VALUES = st.recursive(
    st.integers() | STRINGS, lambda inner: st.lists(inner) | st.dictionaries(STRINGS, inner), max_leaves=20
)


def most_commas_and_brackets(value: Any) -> int:
    if isinstance(value, dict | list):
        inner = list(value.values()) if isinstance(value, dict) else value
        return 1 + max(0, len(inner) - 1) + sum(map(most_commas_and_brackets, inner))
    return 0


@given(value=VALUES, piece=st.integers(1, 12))
def test_values_are_counted_outside_of_strings_alone(value: Any, piece: int) -> None:
    body = json.dumps(value).encode()
    expected = most_commas_and_brackets(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_size, "PIECE", piece)
        patch.setattr(body_size, "MORE_VALUES", 0)
        check_size(body, expected)
        if expected:
            with pytest.raises(PromptTooLongError, match=rf"has more than {expected - 1} JSON values"):
                check_size(body, expected - 1)


def test_a_prompt_of_the_whole_context_and_a_text_full_of_commas_fit() -> None:
    check_size(json.dumps({"prompt": [1] * 8192}).encode(), 8192)
    check_size(json.dumps({"prompt": ',"[{' * 10**6}).encode(), 8192)
    with pytest.raises(PromptTooLongError):
        check_size(json.dumps({"prompt": [1] * (8192 + MORE_VALUES + 1)}).encode(), 8192)
