from __future__ import annotations

from typing import Any

import pytest

from app.errors import InvalidRequestError
from app.generation import SamplingParams


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
        ("min_tokens", -1),
        ("min_tokens", 2),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", float("nan")),
        ("presence_penalty", -2.1),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", 2.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 101.0),
        ("repetition_penalty", float("nan")),
        ("logprobs", -1),
        ("logprobs", 21),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"{field} = .*allowed: ") as refused:
        SamplingParams(**({"max_tokens": 1} | {field: value}))
    assert refused.value.param == field


@pytest.mark.parametrize("bias", [-101.0, 100.5, float("nan"), float("inf")])
def test_a_bias_out_of_range_is_refused_by_its_token(bias: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"logit_bias\.7 = .*allowed: -100 to 100") as refused:
        SamplingParams(1, logit_bias={3: 1.0, 7: bias})
    assert refused.value.param == "logit_bias.7"
