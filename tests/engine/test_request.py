from __future__ import annotations

from typing import Any

import pytest

from app.engine.request import SamplingParams
from app.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", float("nan")),
        ("stop", ("a", "")),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"{field} = .*allowed: ") as refused:
        SamplingParams(**({"max_tokens": 1} | {field: value}))
    assert refused.value.param == field
