"""Bodies of completion requests: what is taken, and how a refusal reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from app.api.openai.requests import ChatRequest, TextRequest, is_chat, parse_body, pinned_rank
from app.errors import InvalidRequestError
from app.generation import SamplingParams, StructuredOutput


def text(**fields: Any) -> TextRequest:
    return parse_body(TextRequest, json.dumps({"prompt": "Hello"} | fields).encode())


def chat(**fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "Hello"}]
    return parse_body(ChatRequest, json.dumps({"messages": messages} | fields).encode())


def refusal(parse: Any, **fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value


NEUTRAL = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "suffix": "",
    "top_logprobs": 0,
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "auto",
    "parallel_tool_calls": True,
    "modalities": ["text"],
    "store": False,
    "service_tier": "auto",
}
NOT_BUILT = {
    "best_of": 3,
    "echo": True,
    "suffix": "end",
    "tools": [{"type": "function"}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "parallel_tool_calls": 3,
    "modalities": ["text", "audio"],
    "store": True,
    "service_tier": "flex",
}


@pytest.mark.parametrize("parse", [text, chat])
@pytest.mark.parametrize(("field", "value"), NEUTRAL.items())
def test_a_field_that_is_not_built_is_taken_where_it_asks_for_nothing(
    parse: Any, field: str, value: Any
) -> None:
    assert parse(**{field: value}) == parse(**{field: None}) == parse()


@pytest.mark.parametrize("parse", [text, chat])
@pytest.mark.parametrize(("field", "value"), NOT_BUILT.items())
def test_a_field_that_is_not_built_is_refused_where_it_asks_for_something(
    parse: Any, field: str, value: Any
) -> None:
    error = refusal(parse, **{field: value})
    assert error.message.startswith(f"{field} = {value!r} isn't supported")
    assert (error.param, error.code) == (field, "unsupported_field")


@pytest.mark.parametrize(("field", "value"), [("logprobs", False), ("n", True), ("echo", 0)])
def test_zero_is_not_false_and_one_is_not_true(field: str, value: Any) -> None:
    assert refusal(text, **{field: value}).param == field


@pytest.mark.parametrize("parse", [text, chat])
def test_a_request_may_want_several_samples(parse: Any) -> None:
    assert parse(n=128).n == 128
    for number in (0, 129):
        assert refusal(parse, n=number).param == "n"


@pytest.mark.parametrize("prompt", ["one", [1, 2, 3]])
def test_a_single_prompt_may_be_a_list_of_prompts(prompt: Any) -> None:
    assert text(prompt=[prompt]) == text(prompt=prompt)
    error = refusal(text, prompt=[prompt, prompt])
    assert error.message == "prompt: 2 prompts; one per request is allowed"
    assert error.param == "prompt"


@pytest.mark.parametrize("field", ["user", "metadata", "safety_identifier", "prompt_cache_key"])
def test_fields_that_only_inform_are_taken(field: str) -> None:
    assert text(**{field: "x"}) == text()


@pytest.mark.parametrize("parse", [text, chat])
@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("temperature", "1", "temperature = '1': Input should be a valid number"),
        ("temperature", 2.1, "temperature = 2.1: Input should be less than or equal to 2"),
        ("temperature", -1, "temperature = -1"),
        ("top_p", 0, "top_p = 0"),
        ("top_p", 1.1, "top_p = 1.1"),
        ("top_k", -2, "top_k = -2"),
        ("top_k", 1.5, "top_k = 1.5"),
        ("stream", "true", "stream = 'true': Input should be a valid boolean"),
        ("stream", 1, "stream = 1"),
        ("seed", "1", "seed = '1'"),
        ("seed", 1.5, "seed = 1.5"),
        ("max_tokens", 0, "max_tokens = 0"),
        ("max_tokens", "5", "max_tokens = '5'"),
        ("max_tokens", 5.0, "max_tokens = 5.0"),
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
        ("min_p", 1.5, "min_p = 1.5: Input should be less than or equal to 1"),
        ("presence_penalty", 2.5, "presence_penalty = 2.5: Input should be less than or equal to 2"),
        ("frequency_penalty", "0", "frequency_penalty = '0'"),
        ("repetition_penalty", 0, "repetition_penalty = 0: Input should be greater than or equal to 0.01"),
        ("logit_bias", [1], "logit_bias = [1]"),
        ("logprobs", "1", "logprobs = '1'"),
        ("guided_json", 5, "guided_json = 5: Input should be a valid string, or Input should be an object"),
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
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
    ],
)
def test_a_wrong_value_deeper_down_is_named_with_its_path(fields: dict[str, Any], param: str) -> None:
    error = refusal(text, **fields)
    assert error.param is not None
    assert error.param.startswith(param)
    assert param in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"max_token": 5}, "max_token"), ({"stream_options": {"usage": True}}, "stream_options.usage")],
)
def test_an_unknown_field_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal(text, **fields)
    assert (error.param, error.code) == (param, "unknown_field")
    assert param in error.message


def test_a_chats_field_is_unknown_to_a_text_and_the_other_way_round() -> None:
    assert refusal(text, messages=[]).code == "unknown_field"
    assert refusal(chat, prompt="a").code == "unknown_field"
    assert refusal(text, max_completion_tokens=5).code == "unknown_field"


@pytest.mark.parametrize("body", [b"", b"{", b"{'prompt': 1}", b'{"prompt": "\\ud800"}', b"\xff"])
def test_a_body_that_is_not_json(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="JSON"):
        parse_body(TextRequest, body)


@pytest.mark.parametrize("body", [b"[]", b"5", b"null"])
def test_a_body_that_is_no_object(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="body"):
        parse_body(TextRequest, body)


def test_what_is_required() -> None:
    for model, field in ((TextRequest, "prompt"), (ChatRequest, "messages")):
        with pytest.raises(InvalidRequestError, match=f"{field}: required") as caught:
            parse_body(model, b"{}")
        assert (caught.value.param, caught.value.code) == (field, "missing_field")


def test_a_long_value_is_shown_in_part() -> None:
    assert len(refusal(text, temperature="x" * 10_000).message) < 300


@pytest.mark.parametrize("prompt", [["a", "b"], [["a"]], [], [1, -1], [1.5], [2**32], {"a": 1}, 5])
def test_a_prompt_is_one_text_or_token_ids(prompt: Any) -> None:
    param = refusal(text, prompt=prompt).param
    assert param is not None
    assert param.startswith("prompt")


def test_token_ids_as_a_prompt() -> None:
    assert text(prompt=[1, 2, 3]).prompt == [1, 2, 3]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "a"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages.0.content"),
        ({"role": "user", "content": "a", "tool_calls": []}, "messages.0.tool_calls"),
    ],
)
def test_a_message_that_is_not_understood(message: dict[str, Any], param: str) -> None:
    found = refusal(chat, messages=[message]).param
    assert found is not None
    assert found.startswith(param)


def test_messages_reach_the_template_as_plain_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "rules"}, {"role": "user", "content": parts, "name": "Ann"}]
    assert [message.flat() for message in chat(messages=messages).messages] == [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "ab", "name": "Ann"},
    ]


def test_no_messages() -> None:
    assert refusal(chat, messages=[]).param == "messages"


def test_null_is_the_same_as_leaving_a_field_out() -> None:
    fields = ("temperature", "top_p", "max_tokens", "stop", "stream", "seed", "model", "stream_options")
    assert text(**dict.fromkeys(fields)) == text()
    assert refusal(text, prompt=None).code == "missing_field"


def test_output_limits() -> None:
    assert text().max_output_tokens == 16
    assert chat().max_output_tokens is None
    assert chat(max_tokens=5).max_output_tokens == 5
    assert chat(max_completion_tokens=7).max_output_tokens == 7
    with pytest.raises(InvalidRequestError, match="send one of them"):
        chat(max_tokens=5, max_completion_tokens=7)


def test_null_is_the_same_as_nothing_at_any_depth() -> None:
    body = chat(
        messages=[{"role": "assistant", "content": "x", "name": None, "refusal": None}],
        stream=True,
        stream_options={"include_usage": None},
        temperature=None,
    )
    assert body.messages[0].flat() == {"role": "assistant", "content": "x"}
    assert body.temperature == 1.0
    assert body.stream_options is not None
    assert not body.stream_options.include_usage


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


def test_logprobs_of_chats_and_of_texts() -> None:
    assert chat().sampling_params(9).logprobs is None
    assert chat(logprobs=False, top_logprobs=0).sampling_params(9).logprobs is None
    assert chat(logprobs=True).sampling_params(9).logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).sampling_params(9).logprobs == 20
    assert text(logprobs=0).sampling_params(9).logprobs == 0
    assert refusal(chat, top_logprobs=3).message == "top_logprobs = 3; allowed only with logprobs: true"
    assert refusal(chat, logprobs=True, top_logprobs=21).param == "top_logprobs"
    assert refusal(chat, logprobs=1).param == "logprobs"
    assert refusal(text, logprobs=True).param == refusal(text, logprobs=21).param == "logprobs"
    assert refusal(text, top_logprobs=3).code == "unsupported_field"


def test_min_tokens_fit_into_max_tokens() -> None:
    with pytest.raises(
        InvalidRequestError, match="min_tokens = 10; allowed: 0 to max_tokens, which is 9"
    ) as caught:
        chat(min_tokens=10).sampling_params(9)
    assert caught.value.param == "min_tokens"


SCHEMA = {"type": "object", "properties": {"a": {"enum": [None, "ü"]}}}


@pytest.mark.parametrize("parse", [text, chat])
@pytest.mark.parametrize(
    ("fields", "kind", "source", "field"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            "json_schema",
            json.dumps(SCHEMA),
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_object"}},
            "json_schema",
            '{"type": "object"}',
            "response_format",
        ),
        (
            {"structured_outputs": {"json": SCHEMA}},
            "json_schema",
            json.dumps(SCHEMA),
            "structured_outputs.json",
        ),
        ({"structured_outputs": {"json": "{}"}}, "json_schema", "{}", "structured_outputs.json"),
        (
            {"structured_outputs": {"json_object": True}},
            "json_schema",
            '{"type": "object"}',
            "structured_outputs.json_object",
        ),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a", "b"]', "structured_outputs.choice"),
        (
            {"structured_outputs": {"grammar": "start: A"}},
            "grammar",
            "start: A",
            "structured_outputs.grammar",
        ),
        ({"guided_json": SCHEMA}, "json_schema", json.dumps(SCHEMA), "guided_json"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["a"]}, "choice", '["a"]', "guided_choice"),
        ({"guided_grammar": "start: A"}, "grammar", "start: A", "guided_grammar"),
    ],
)
def test_structured_output_in_every_way_to_ask_for_it(
    parse: Any, fields: dict[str, Any], kind: Any, source: str, field: str
) -> None:
    params = parse(**fields).sampling_params(9)
    assert params == SamplingParams(9, structured_output=StructuredOutput(kind, source, field))


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "json_object": False}},
    ],
)
def test_a_structured_output_that_asks_for_nothing(fields: dict[str, Any]) -> None:
    assert chat(**fields).sampling_params(9) == SamplingParams(9)


@pytest.mark.parametrize(
    ("fields", "param", "other"),
    [
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs.choice",
            "structured_outputs.regex",
        ),
        ({"response_format": {"type": "json_object"}, "guided_json": {}}, "guided_json", "response_format"),
        ({"guided_regex": "a", "guided_grammar": "b"}, "guided_grammar", "guided_regex"),
    ],
)
def test_only_one_structured_output(fields: dict[str, Any], param: str, other: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(**fields).sampling_params(9)
    assert caught.value.message == f"{param}: {other} is given too; send one of them"
    assert caught.value.param == param


def test_a_schema_has_a_longest_length() -> None:
    with pytest.raises(InvalidRequestError, match="at most 65536") as caught:
        chat(guided_json={"enum": ["x" * 70_000]}).sampling_params(9)
    assert caught.value.param == "guided_json"


def rank_headers(*values: str) -> Headers:
    """As an ASGI server gives them: names in small letters, values as they came."""
    return Headers(raw=[(b"x-data-parallel-rank", value.encode("latin-1")) for value in values])


def test_the_header_beats_the_body() -> None:
    assert pinned_rank(rank_headers(), text(), 4) is None
    assert pinned_rank(rank_headers(), text(routed_dp_rank=0), 4) == 0
    assert pinned_rank(rank_headers("3"), text(routed_dp_rank=0), 4) == 3
    assert pinned_rank(rank_headers("0"), text(data_parallel_rank=1), 4) == 0


@pytest.mark.parametrize("parse", [text, chat])
def test_the_old_name_of_the_rank_may_only_say_the_same(parse: Any) -> None:
    assert pinned_rank(rank_headers(), parse(data_parallel_rank=1), 4) == 1
    assert pinned_rank(rank_headers(), parse(data_parallel_rank=1, routed_dp_rank=1), 4) == 1
    assert pinned_rank(rank_headers(), parse(data_parallel_rank=1, routed_dp_rank=None), 4) == 1
    error = refusal(parse, data_parallel_rank=1, routed_dp_rank=0)
    assert error.param == "data_parallel_rank"
    assert error.message.startswith("data_parallel_rank = 1: the old name of routed_dp_rank, which is 0")


@pytest.mark.parametrize("header", ["", " ", "one", "1.0", "0x1", "+1", "1_0", "0,1", "\xb2", "9" * 19])
def test_a_header_that_is_no_integer(header: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        pinned_rank(rank_headers(header), text(routed_dp_rank=0), 4)
    assert caught.value.param == "X-Data-Parallel-Rank"
    assert repr(header) in caught.value.message


@pytest.mark.parametrize("headers", [("0", "1"), ("1", "1"), ("1", "")])
def test_a_rank_is_named_by_one_header(headers: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="Rank: 2 headers; one is allowed") as caught:
        pinned_rank(rank_headers(*headers), text(), 4)
    assert (caught.value.status, caught.value.param) == (400, "X-Data-Parallel-Rank")


@pytest.mark.parametrize("rank", [-1, 4, 10**17])
def test_a_rank_that_cannot_exist_is_named_as_the_client_named_it(rank: int) -> None:
    for field, headers, body in (
        ("X-Data-Parallel-Rank", rank_headers(str(rank)), text(routed_dp_rank=0)),
        ("routed_dp_rank", rank_headers(), text(routed_dp_rank=rank)),
        ("data_parallel_rank", rank_headers(), text(data_parallel_rank=rank)),
    ):
        with pytest.raises(InvalidRequestError, match=r"0 to 3$") as caught:
            pinned_rank(headers, body, 4)
        assert caught.value.param == field
        assert caught.value.message.startswith(f"{field} = {rank}: ")


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


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"messages": []}', True),
        (b'{"messages": [], "prompt": "a"}', True),
        (b'{"prompt": "messages"}', False),
        (b'["messages"]', False),
        (b'{"messages": ', False),
        (b"\xff", False),
        (b"[" * 100_000, False),
    ],
)
def test_a_body_with_messages_is_a_chats(body: bytes, expected: bool) -> None:
    assert is_chat(body) == expected
