"""What may be secret in a config is shown nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from app.config import load_config
from app.errors import ConfigError
from app.redaction import redacted

SECRET = "hunter2"


@pytest.mark.parametrize(
    "value",
    [
        {"hf_token": SECRET},
        {
            "model_loader_extra_config": {
                "s3": [{"aws_secret_access_key": SECRET, "aws_access_key_id": SECRET}]
            }
        },
        {"kv_transfer_config": {"password": SECRET, "API-Key": [SECRET]}},
        {"otlp_traces_endpoint": f"https://user:{SECRET}@host/x"},
        [f"redis://:{SECRET}@host", f"http://u:a@{SECRET}@host"],
    ],
)
def test_secrets_are_hidden_wherever_they_are(value: Any) -> None:
    assert SECRET not in repr(redacted(value))
    assert "***" in repr(redacted(value))


def test_everything_else_is_as_it_was() -> None:
    value = {"max_num_batched_tokens": 8, "hf_token": None, "a": [1.5, {"b": "http://h:1/x"}], "key": True}
    assert redacted(value) == value


@pytest.mark.parametrize(
    "args",
    [
        {"remote_ranks": {"workers": [{"url": f"http://u:{SECRET}@h"}]}},
        {"remote_ranks": {"workers": [{"url": f"http://:{SECRET}@h"}]}},
        {"remote_ranks": {"workers": [f"http://u:{SECRET}/@h"]}},
        {"remote_ranks": {"workers": [{"url": "http://h"}]}, "engine": {"vllm": {"hf_token": SECRET}}},
        {"engine": {"vllm": [{"hf_token": SECRET}]}},
    ],
)
def test_a_refusal_of_settings_shows_no_secret(args: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(args)
    assert SECRET not in str(caught.value)
    assert "***" in str(caught.value)
