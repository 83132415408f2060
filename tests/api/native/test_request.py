"""Bodies of SGLang's `/generate`: what is served is read as SGLang reads it, everything else is named."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from app.api.native.request import GenerateBody, parse_generate
from app.api.request_model import UNLIMITED
from app.generation import SamplingParams, StructuredOutput
from app.hashing import tenant_salt
from tests.support.completion_bodies import refusal

SGLANGS_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(
        re.findall(
            r"\w+",
            """
            rid session_id input_ids input_embeds image_data video_data audio_data mm_hashes mm_content_hashes
            video_config return_logprob logprob_start_len top_logprobs_num token_ids_logprob
            return_sampling_mask modalities session_params lora_path lora_id custom_logit_processor
            positional_embed_overrides bootstrap_host bootstrap_port bootstrap_room bootstrap_pair_key
            decode_tp_size routed_dp_rank data_parallel_rank disagg_prefill_dp_rank kv_router_hint routing_key
            conversation_id max_thinking_tokens priority extra_key custom_labels external_trace_header
            received_time need_wait_for_mm_inputs max_dynamic_patch min_dynamic_patch images_config
            image_max_dynamic_patch video_max_dynamic_patch multi_item_delimiter_indices cache_salt
            """,
        )
    ),
    **dict.fromkeys(
        re.findall(
            r"\w+",
            """
            use_audio_in_video return_text_in_logprobs return_flat_raw_top_logprobs
            return_flat_raw_top_logprobs_b64 stream return_hidden_states return_routed_experts
            return_indexer_topk background require_reasoning no_logs return_bytes return_entropy
            return_prompt_token_ids
            """,
        ),
        False,
    ),
    **{"log_metrics": True, "routed_experts_start_len": 0},
}
"""What its `GenerateReqInput` has besides the text, as JSON has it."""

SGLANGS_SAMPLING_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("stop", "stop_token_ids", "stop_regex", "json_schema", "regex", "ebnf", "logit_bias")),
    **dict.fromkeys(("structural_tag", "custom_params", "stream_interval", "sampling_seed")),
    **{"temperature": 1.0, "top_p": 1.0, "top_k": 1 << 30, "min_p": 0.0, "n": 1, "min_new_tokens": 0},
    **{"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 128},
    **{"ignore_eos": False, "skip_special_tokens": True, "spaces_between_special_tokens": True},
    "no_stop_trim": False,
}
"""The same of its `SamplingParams`."""


def native(**fields: Any) -> GenerateBody:
    """A native request with these fields besides its prompt, which they may replace."""
    prompt = {} if fields.keys() & {"text", "input_ids"} else {"text": "Hello"}
    return parse_generate(json.dumps(prompt | fields).encode())


def sampled(**fields: Any) -> SamplingParams:
    return native(sampling_params=fields).engine_params()


def test_defaults_are_sglangs() -> None:
    body = native()
    assert (body.prompt, body.n, body.priority, body.is_batch) == ("Hello", 1, 0, False)
    assert body.engine_params() == SamplingParams(128)
    assert native(sampling_params=None).engine_params() == SamplingParams(128)
    assert not body.stream
    assert not body.incremental_streaming_output


def test_every_sampling_field_reaches_the_engine() -> None:
    assert sampled(
        max_new_tokens=9,
        min_new_tokens=2,
        temperature=0.5,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        sampling_seed=-7,
        stop=["a", "b"],
        stop_token_ids=[1, 2],
        ignore_eos=True,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={"7": -3},
    ) == SamplingParams(
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        seed=-7,
        stop=("a", "b"),
        stop_token_ids=(1, 2),
        ignore_eos=True,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={7: -3},
    )
    assert sampled(stop="a", top_k=-1) == SamplingParams(128, stop=("a",))


def test_no_limit_is_a_null_and_nothing_is_128() -> None:
    assert sampled(max_new_tokens=None).max_tokens == UNLIMITED
    assert sampled().max_tokens == 128


@pytest.mark.parametrize(
    ("field", "value", "kind", "source"),
    [
        ("json_schema", '{"type": "object"}', "json_schema", '{"type": "object"}'),
        ("json_schema", {"type": "object"}, "json_schema", '{"type": "object"}'),
        ("regex", "a+", "regex", "a+"),
        ("ebnf", 'root ::= "a"', "grammar", 'root ::= "a"'),
    ],
)
def test_structured_output(field: str, value: Any, kind: Any, source: str) -> None:
    wanted = StructuredOutput(kind, source, f"sampling_params.{field}")
    assert sampled(**{field: value}).structured_output == wanted


def test_logprobs_are_the_outputs() -> None:
    assert native(top_logprobs_num=3).engine_params().logprobs is None
    assert native(return_logprob=True).engine_params().logprobs == 0
    assert native(return_logprob=True, top_logprobs_num=3, logprob_start_len=-1).engine_params().logprobs == 3
    assert native(logprob_start_len=0).engine_params().logprobs is None
    error = refusal(native, return_logprob=True, logprob_start_len=0)
    assert (error.param, error.code) == ("logprob_start_len", "unsupported_field")


@pytest.mark.parametrize(("field", "prompt"), [("text", "one"), ("input_ids", [1, 2, 3])])
def test_a_list_of_one_prompt_is_one_prompt_whose_answer_is_a_list(field: str, prompt: Any) -> None:
    body = native(**{field: prompt})
    assert (body.prompt, body.prompt_field, body.is_batch) == (prompt, field, False)
    body = native(
        **{field: [prompt]},
        sampling_params=[{"max_new_tokens": 5, "n": 2}],
        rid=["mine"],
        return_logprob=[True],
        logprob_start_len=[-1],
        top_logprobs_num=[2],
        cache_salt=["salt"],
        lora_path=[None],
        image_data=[None],
    )
    assert (body.prompt, body.prompt_field, body.is_batch) == (prompt, field, True)
    assert (body.n, body.rid, body.cache_salt) == (2, "mine", "salt")
    assert (body.engine_params().max_tokens, body.engine_params().logprobs) == (5, 2)
    for prompts in ([prompt, prompt], []):
        if field == "text" or prompts:
            error = refusal(native, **{field: prompts})
            assert error.message == f"{field}: {len(prompts)} prompts; one per request is allowed"
            assert error.param == field


def test_lists_go_with_a_list_of_prompts_only() -> None:
    assert refusal(native, sampling_params=[{}]).param == "sampling_params"
    assert refusal(native, rid=["a"]).param == "rid"
    assert refusal(native, text=["a"], rid=["a", "b"]).param == "rid"


def test_a_prompt_is_needed_and_only_one_is_taken() -> None:
    assert refusal(parse_generate_of, sampling_params={}).message == "text: required, or input_ids"
    error = refusal(native, text="a", input_ids=[1])
    assert (error.param, error.message) == ("input_ids", "input_ids: text is given too; send one of them")


def parse_generate_of(**fields: Any) -> GenerateBody:
    return parse_generate(json.dumps(fields).encode())


def test_priorities_are_sglangs_where_more_comes_first() -> None:
    assert native(priority=5).priority == -5
    assert refusal(native, priority=2**31).param == "priority"
    assert refusal(native, priority=-(2**31)).param == "priority"


def test_a_salt_has_two_names_and_an_empty_one_is_none() -> None:
    assert native(cache_salt="a").cache_salt == native(extra_key="a").cache_salt == "a"
    assert native(cache_salt="", extra_key="").cache_salt is None
    assert native(cache_salt="", extra_key="a").cache_salt == "a"
    assert refusal(native, cache_salt="a", extra_key="b").param == "extra_key"


def test_a_tenants_salt_from_another_server_is_taken() -> None:
    salt = tenant_salt("a", None)
    assert native(cache_salt=salt).cache_salt == salt
    assert refusal(native, cache_salt=f"{salt}a").param == "cache_salt"


@pytest.mark.parametrize("field", ["cache_salt", "extra_key", "session_id"])
@pytest.mark.parametrize("value", ["s3cret, " * 100, ["s3cret"], {"s3cret": 1}])
def test_no_error_shows_a_secret(field: str, value: Any) -> None:
    error = refusal(native, **{field: value})
    assert error.param == field
    assert "s3cret" not in error.message
    assert "s3cret" not in repr(native(**{field: "s3cret"}))


def test_the_session_is_a_name_like_the_headers() -> None:
    assert native(session_id="a-~!").session_id == "a-~!"
    assert native().session_id is None
    for wrong in ("", "a,b", "a b", "s" * 257):
        assert refusal(native, session_id=wrong).param == "session_id"


def test_the_rank_has_two_names() -> None:
    assert native(routed_dp_rank=1).rank_fields == {"routed_dp_rank": 1, "data_parallel_rank": None}
    assert native(data_parallel_rank=0).rank_fields["data_parallel_rank"] == 0
    assert refusal(native, routed_dp_rank=1, data_parallel_rank=0).param == "data_parallel_rank"


@pytest.mark.parametrize(
    "field",
    [
        *("input_embeds", "image_data", "video_data", "audio_data", "modalities", "session_params"),
        *("lora_path", "custom_logit_processor", "token_ids_logprob", "return_hidden_states"),
        *("return_sampling_mask", "return_routed_experts", "bootstrap_room", "background"),
        *("max_thinking_tokens", "require_reasoning", "return_prompt_token_ids", "return_entropy"),
    ],
)
def test_what_is_not_served_is_named_and_its_absence_is_taken(field: str) -> None:
    assert native(**{field: None}) == native()
    error = refusal(native, **{field: ["something"]})
    assert (error.param, error.code) == (field, "unsupported_field")
    assert field in error.message


@pytest.mark.parametrize(
    ("field", "neutral", "other"),
    [
        ("stop_regex", "", "a+"),
        ("structural_tag", None, "{}"),
        ("custom_params", {}, {"a": 1}),
        ("beam_width", 1, 2),
    ],
)
def test_sampling_that_is_not_built(field: str, neutral: Any, other: Any) -> None:
    assert sampled(**{field: neutral}) == sampled()
    error = refusal(sampled, **{field: other})
    assert (error.param, error.code) == (f"sampling_params.{field}", "unsupported_field")


def test_everything_that_a_client_of_sglang_sends_by_default_asks_for_nothing() -> None:
    body = native(text="Hello", sampling_params=SGLANGS_SAMPLING_DEFAULTS, **SGLANGS_DEFAULTS)
    assert body.engine_params() == SamplingParams(128, top_k=1 << 30)
    assert (body.prompt, body.priority, body.cache_salt) == ("Hello", 0, None)


ROUTERS_BODIES: dict[str, dict[str, Any]] = {
    "smg 1.13.0": {
        "model": "unknown",
        **{"return_text_in_logprobs": False, "stream": False, "log_metrics": True, "background": False},
        **{"no_logs": False, "return_bytes": False, "return_entropy": False},
    },
    "sglang-router 0.3.2": {
        "model": None,
        **{"return_text_in_logprobs": False, "stream": False, "log_metrics": True, "background": False},
        **{"no_logs": False, "return_bytes": False, "return_entropy": False},
        **{"return_hidden_states": False, "data_parallel_rank": 1},
    },
}
"""What these routers make of a request that names nothing of it; the second with --dp-aware."""


@pytest.mark.parametrize("router", ROUTERS_BODIES)
def test_sglangs_routers_bodies_are_taken(router: str) -> None:
    body = native(**ROUTERS_BODIES[router])
    assert body.model is None
    assert body.engine_params() == SamplingParams(128)
    assert native(model="mine").model == "mine"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_new_tokens": 5}, "max_new_tokens"),
        ({"prompt": "a"}, "prompt"),
        ({"sampling_params": {"max_tokens": 5}}, "sampling_params.max_tokens"),
    ],
)
def test_a_field_of_another_place_or_api_is_refused(fields: dict[str, Any], param: str) -> None:
    error = refusal(native, **fields)
    assert (error.param, error.code) == (param, "unsupported_field")
    assert "; send " in error.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_new_tokens", 0), ("n", 0), ("n", 129), ("temperature", -1), ("top_p", 0), ("top_k", -2)),
        ("top_k", 2**31),
        *(("min_p", 2), ("presence_penalty", 3), ("repetition_penalty", 0), ("stop", ""), ("regex", "")),
        *(("logit_bias", {"7": 101}), ("stop_token_ids", [-1]), ("min_new_tokens", 129)),
    ],
)
def test_a_wrong_value_is_named_with_its_field(field: str, value: Any) -> None:
    error = refusal(sampled, **{field: value})
    assert error.param is not None
    assert error.param.startswith(f"sampling_params.{field}")
    assert f"sampling_params.{field}" in error.message


def test_one_structured_output() -> None:
    error = refusal(sampled, json_schema="{}", regex="a")
    assert error.param == "sampling_params.regex"
