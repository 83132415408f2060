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


def counts(value: Any) -> tuple[int, int]:
    """Commas, and lists and objects."""
    if not isinstance(value, dict | list):
        return 0, 0
    inner = [counts(each) for each in (value.values() if isinstance(value, dict) else value)]
    commas = max(0, len(value) - 1) + sum(each[0] for each in inner)
    return commas, 1 + sum(each[1] for each in inner)


@given(value=VALUES, piece=st.integers(1, 12))
def test_values_are_counted_outside_of_strings_alone(value: Any, piece: int) -> None:
    body = json.dumps(value).encode()
    most = max(counts(value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_size, "PIECE", piece)
        patch.setattr(body_size, "MORE_VALUES", most)
        check_size(body, 0)
        if most:
            patch.setattr(body_size, "MORE_VALUES", most - 1)
            with pytest.raises(PromptTooLongError, match=r"too many JSON values"):
                check_size(body, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [1] * 8192},
        {"prompt": [[1] * 8192] * 20},
        {"prompt": ',"[{' * 10**5},
        {"messages": [{"role": "user", "content": "a"}] * 8000},
    ],
)
def test_what_may_fit_passes(fields: Any) -> None:
    check_size(json.dumps(fields).encode(), 8192)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [1] * (8192 + MORE_VALUES + 2)},
        {"messages": [{}] * (MORE_VALUES + 1)},
        {"x": [[]] * (MORE_VALUES + 1)},
    ],
)
def test_what_cant_is_refused(fields: Any) -> None:
    with pytest.raises(PromptTooLongError):
        check_size(json.dumps(fields).encode(), 8192)
