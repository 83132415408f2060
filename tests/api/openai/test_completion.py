"""What chat and text completions have in common: what is taken, and how a refusal reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.api.openai.requests import ChatRequest, TextRequest
from app.errors import InvalidRequestError, shown
from app.generation import SamplingParams
from tests.support.completion_bodies import chat, refusal, text

NEUTRAL = {
    "n": 1,
    "suffix": "",
    "top_logprobs": 0,
    "functions": [],
    "function_call": "auto",
    "modalities": ["text"],
    "store": False,
    "service_tier": "auto",
    "stream_reasoning": True,
    "return_hidden_states": False,
    "bad_words": [],
    "vllm_xargs": {},
    "lora_path": "",
    "prediction": {"type": "content", "content": "a"},
    "prompt_cache_retention": "in-memory",
}


NOT_BUILT = {
    "suffix": "end",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "modalities": ["text", "audio"],
    "return_hidden_states": True,
    "bad_words": ["a"],
    "prompt_logprobs": 1,
    "truncate_prompt_tokens": 5,
    "use_beam_search": True,
    "audio": {"voice": "alloy"},
    "extra_key": "a",
    "chat_template": "{{ messages }}",
    "thinking_token_budget": 5,
}


ROUTERS_CHATS = {
    "smg 1.13.0": {"logprobs": False, "max_tokens": 5, "stream": False, "temperature": 0.0},
    "sglang-router 0.3.2": {
        "logprobs": False,
        "max_completion_tokens": 5,
        "stream": False,
        "temperature": 0.0,
        "no_stop_trim": False,
        "ignore_eos": False,
        "continue_final_message": False,
        "skip_special_tokens": True,
        "separate_reasoning": True,
        "stream_reasoning": True,
        "return_hidden_states": False,
    },
}
"""What these routers, with --dp-aware, make of a chat with `max_tokens` and `temperature` alone."""
ROUTERS_TEXTS = {
    "smg 1.13.0": {"echo": False, "max_tokens": 5, "stream": False, "temperature": 0.0},
    "sglang-router 0.3.2": {
        "max_tokens": 5,
        "temperature": 0.0,
        "stream": False,
        "echo": False,
        "no_stop_trim": False,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "return_hidden_states": False,
    },
}


@pytest.mark.parametrize("router", ROUTERS_CHATS)
def test_sglangs_routers_bodies_are_taken_with_the_rank_that_they_choose(router: str) -> None:
    for parse, fields in ((chat, ROUTERS_CHATS[router]), (text, ROUTERS_TEXTS[router])):
        body = parse(**fields, data_parallel_rank=1)
        assert (body.max_output_tokens, body.temperature, body.data_parallel_rank) == (5, 0.0, 1)


@pytest.mark.parametrize("parse", [text, chat])
@pytest.mark.parametrize(("field", "value"), NEUTRAL.items())
def test_a_field_that_is_not_built_is_taken_where_it_asks_for_nothing(
    parse: Any, field: str, value: Any
) -> None:
    body = parse(**{field: value})
    assert body == parse(**{field: None}) == parse()
    assert body.ignored_fields == ()


@pytest.mark.parametrize("parse", [text, chat])
@pytest.mark.parametrize(("field", "value"), NOT_BUILT.items())
def test_a_field_that_is_not_built_is_refused_where_it_asks_for_something(
    parse: Any, field: str, value: Any
) -> None:
    error = refusal(parse, **{field: value})
    assert error.message.startswith(f"{field} = {shown(value)} isn't supported; ")
    assert (error.param, error.code) == (field, "unsupported_field")


@pytest.mark.parametrize(
    ("field", "value"), [("logprobs", False), ("n", True), ("echo", 0), ("best_of", True)]
)
def test_zero_is_not_false_and_one_is_not_true(field: str, value: Any) -> None:
    assert refusal(text, **{field: value}).param == field


@pytest.mark.parametrize("parse", [text, chat])
def test_the_best_of_some_samples_are_all_of_them(parse: Any) -> None:
    assert parse(best_of=1).engine_params() == parse().engine_params()
    assert parse(n=3, best_of=3).n == 3
    error = refusal(parse, n=2, best_of=3)
    assert error.message.startswith("best_of = 3 isn't supported; all samples are shown")
    assert (error.param, error.code) == ("best_of", "unsupported_field")
    assert refusal(parse, best_of=True).param == "best_of"


def test_an_echo_has_the_logprobs_of_its_prompt() -> None:
    for fields, wanted in (
        ({"echo": True, "logprobs": 2}, 2),
        ({"logprobs": 2}, None),
        ({"echo": True}, None),
    ):
        assert text(**fields).engine_params().prompt_logprobs == wanted
    assert refusal(chat, echo=True).code == "unsupported_field"


def test_a_text_may_want_no_output() -> None:
    body = text(max_tokens=0)
    assert (body.max_tokens, body.engine_params().max_tokens) == (0, 1)
    assert refusal(text, max_tokens=0, min_tokens=1).param == "min_tokens"
    assert refusal(chat, max_tokens=0).param == "max_tokens"


@pytest.mark.parametrize("parse", [text, chat])
def test_a_request_may_want_several_samples(parse: Any) -> None:
    assert parse(n=128).n == 128
    for number in (0, 129):
        assert refusal(parse, n=number).param == "n"


@pytest.mark.parametrize("field", ["user", "metadata", "safety_identifier", "prompt_cache_key"])
def test_fields_that_only_inform_are_taken(field: str) -> None:
    assert text(**{field: "x"}) == text()


@pytest.mark.parametrize("parse", [text, chat])
@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("temperature", "1", "temperature = '1': a number is needed"),
        ("temperature", 2.1, "temperature = 2.1: at most 2 is allowed"),
        ("temperature", -1, "temperature = -1"),
        ("top_p", 0, "top_p = 0"),
        ("top_p", 1.1, "top_p = 1.1"),
        ("top_k", -2, "top_k = -2"),
        ("top_k", 1.5, "top_k = 1.5"),
        ("top_k", 2**31, "top_k = 2147483648: less than 2147483648 is allowed"),
        ("stream", "true", "stream = 'true': true or false is needed"),
        ("stream", 1, "stream = 1"),
        ("seed", "1", "seed = '1'"),
        ("seed", 1.5, "seed = 1.5"),
        ("max_tokens", -1, "max_tokens = -1"),
        ("max_tokens", "5", "max_tokens = '5'"),
        ("max_tokens", 5.5, "max_tokens = 5.5: an integer is needed"),
        ("stop", "", "stop = ''"),
        ("stop", 5, "stop = 5"),
        ("ignore_eos", "no", "ignore_eos = 'no'"),
        ("cache_salt", "", "cache_salt = ''"),
        ("cache_salt", 5, "cache_salt = 5"),
        ("routed_dp_rank", "1", "routed_dp_rank = '1'"),
        ("data_parallel_rank", 1.5, "data_parallel_rank = 1.5"),
        ("model", 5, "model = 5"),
        ("stop_token_ids", 5, "stop_token_ids = 5"),
        ("min_tokens", -1, "min_tokens = -1"),
        ("min_p", 1.5, "min_p = 1.5: at most 1 is allowed"),
        ("presence_penalty", 2.5, "presence_penalty = 2.5: at most 2 is allowed"),
        ("frequency_penalty", "0", "frequency_penalty = '0'"),
        ("repetition_penalty", 0, "repetition_penalty = 0: at least 0.01 is needed"),
        ("logit_bias", [1], "logit_bias = [1]"),
        ("logprobs", "1", "logprobs = '1'"),
        ("guided_json", 5, "guided_json = 5: a string or an object is needed"),
        ("guided_regex", "", "guided_regex = ''"),
        ("guided_choice", [], "guided_choice = []"),
        ("response_format", "json", "response_format = 'json'"),
    ],
)
def test_a_wrong_value_is_named_with_its_field(parse: Any, field: str, value: Any, shown: str) -> None:
    error = refusal(parse, **{field: value})
    assert error.message.startswith(shown)
    assert error.param == field


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a", 5]}, "stop"),
        ({"stop_token_ids": [1, "2"]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias.5"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"07": 1}}, "logit_bias.07"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice.1"),
        ({"structured_outputs": {"whitespace_pattern": "a"}}, "structured_outputs.whitespace_pattern"),
    ],
)
def test_a_wrong_value_deeper_down_is_named_with_its_path(fields: dict[str, Any], param: str) -> None:
    error = refusal(text, **fields)
    assert error.param is not None
    assert error.param.startswith(param)
    assert param in error.message


def test_stream_options_need_a_stream() -> None:
    with pytest.raises(InvalidRequestError, match="stream: true") as caught:
        chat(stream_options={"include_usage": True})
    assert caught.value.param == "stream_options"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 1025}, "stop"),
        ({"stop_token_ids": [1] * 257}, "stop_token_ids"),
        ({"prompt": [1, 2.5]}, "prompt.1"),
        ({"logit_bias": {str(token_id): 1 for token_id in range(1025)}}, "logit_bias"),
        ({"guided_choice": ["x"] * 1025}, "guided_choice"),
    ],
)
def test_what_one_request_may_ask_for_has_an_end(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        text(**fields)
    assert caught.value.param == named
    assert len(caught.value.message) < 300


def test_sampling_params() -> None:
    body = text(
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        seed=-7,
        stop=["a", "b"],
        stop_token_ids=[1, 2],
        ignore_eos=True,
    )
    assert body.sampling_params(9) == SamplingParams(9, 0.5, 5, 0.9, -7, ("a", "b"), (1, 2), True)
    shaped = text(
        min_tokens=3,
        min_p=0.1,
        presence_penalty=-0.5,
        frequency_penalty=1,
        repetition_penalty=1.1,
        logit_bias={"50": 10, "0": -2.5},
        logprobs=4,
    )
    assert shaped.sampling_params(9) == SamplingParams(
        9,
        min_tokens=3,
        min_p=0.1,
        presence_penalty=-0.5,
        frequency_penalty=1.0,
        repetition_penalty=1.1,
        logit_bias={50: 10.0, 0: -2.5},
        logprobs=4,
    )
    assert text().sampling_params(9) == SamplingParams(9)
    assert text(stop="a", top_k=-1).sampling_params(9) == SamplingParams(9, stop=("a",))


def test_min_tokens_fit_into_max_tokens() -> None:
    with pytest.raises(
        InvalidRequestError, match="min_tokens = 10; allowed: 0 to max_tokens, which is 9"
    ) as caught:
        chat(min_tokens=10).sampling_params(9)
    assert caught.value.param == "min_tokens"


@pytest.mark.parametrize("model", [ChatRequest, TextRequest])
def test_every_field_is_in_the_documentation(model: type[ChatRequest | TextRequest]) -> None:
    documented = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    assert [name for name in {*model.model_fields, *NEUTRAL} if f"`{name}`" not in documented] == []


@pytest.mark.parametrize("salt", ["secret-" * 40, ["secret"], {"a": "secret"}])
@pytest.mark.parametrize("parse", [text, chat])
def test_a_salt_that_is_refused_is_not_shown(parse: Any, salt: Any) -> None:
    error = refusal(parse, cache_salt=salt)
    assert error.param == "cache_salt"
    assert error.message.startswith("cache_salt: ")
    assert "secret" not in error.message


def test_a_salt_that_utf8_cannot_write_is_refused() -> None:
    refusal(text, cache_salt="secret\ud800")


@pytest.mark.parametrize("parse", [text, chat])
def test_a_salt_is_in_no_description_of_its_body(parse: Any) -> None:
    body = parse(cache_salt="secret")
    assert body.cache_salt == "secret"
    assert "secret" not in f"{body!r} {body}"
