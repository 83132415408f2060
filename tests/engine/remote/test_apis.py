"""What is sent to workers, and what their events mean, field by field."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from app.engine.remote.api.generation import WorkerRequest, worker_requests
from app.engine.remote.api.native import NativeApi
from app.engine.remote.api.refusals import refusal, refusal_in_stream
from app.engine.remote.api.vllm import VllmApi
from app.engine.remote.native_info import read_loads, read_server_info
from app.engine.remote.vllm_info import Metrics
from app.errors import (
    EngineFailedError,
    InvalidRequestError,
    QueueFullError,
    RequestFailedError,
    WireError,
    WorkerError,
)
from app.generation import GenerateRequest, SamplingParams, StructuredOutput

FULL = SamplingParams(
    6,
    temperature=0.7,
    top_k=20,
    top_p=0.9,
    min_p=0.01,
    seed=7,
    stop=("zz",),
    stop_token_ids=(3,),
    ignore_eos=True,
    min_tokens=2,
    presence_penalty=0.1,
    frequency_penalty=0.2,
    repetition_penalty=1.1,
    logit_bias={17: -5.0},
    logprobs=3,
)


def request(params: SamplingParams = FULL, **fields: Any) -> WorkerRequest:
    values: dict[str, Any] = {"request_id": "r", "token_ids": [1, 2], "params": params, "n": 2, "priority": 0}
    return WorkerRequest(**(values | {"cache_salt": "pepper", "num_cached_tokens": 0} | fields))


def test_a_prompts_logprobs_are_refused_until_the_client_has_had_them() -> None:
    params = SamplingParams(6, temperature=0.0, prompt_logprobs=1)
    with pytest.raises(InvalidRequestError, match="workers by URL don't give") as caught:
        worker_requests(GenerateRequest("r", [1, 2], params), 100, 0)
    assert (caught.value.param, caught.value.code) == ("echo", "unsupported_field")
    assert worker_requests(GenerateRequest("r", [1, 2], params, earlier_outputs={0: [3]}), 100, 0)[0].n == 1


def test_native_body_has_every_field_by_sglangs_name() -> None:
    body = json.loads(NativeApi("w", 1).body(request(priority=4)))
    assert body == {
        "rid": "r",
        "input_ids": [1, 2],
        "stream": True,
        "incremental_streaming_output": True,
        "return_logprob": True,
        "logprob_start_len": -1,
        "top_logprobs_num": 3,
        "cache_salt": "pepper",
        "priority": -4,
        "sampling_params": {
            "max_new_tokens": 6,
            "min_new_tokens": 2,
            "n": 2,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.9,
            "min_p": 0.01,
            "sampling_seed": 7,
            "stop": ["zz"],
            "stop_token_ids": [3],
            "ignore_eos": True,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.2,
            "repetition_penalty": 1.1,
            "logit_bias": {"17": -5.0},
        },
    }
    assert NativeApi("w", 1).headers() == {"X-Data-Parallel-Rank": "1"}
    assert NativeApi("w", None).headers() == {}


def test_vllm_body_has_every_field_by_vllms_name() -> None:
    body = json.loads(VllmApi("w", 1).body(request(priority=4)))
    assert (body["request_id"], body["token_ids"], body["cache_salt"], body["priority"]) == (
        *("r", [1, 2], "pepper", 4),
    )
    assert body["sampling_params"] == {
        "max_tokens": 6,
        "min_tokens": 2,
        "n": 2,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.01,
        "seed": 7,
        "stop": ["zz"],
        "stop_token_ids": [3],
        "ignore_eos": True,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {"17": -5.0},
        "logprobs": 4,
    }


@pytest.mark.parametrize(
    ("kind", "source", "native", "vllm"),
    [
        ("json_schema", "{}", {"json_schema": "{}"}, {"json": "{}"}),
        ("regex", "a+", {"regex": "a+"}, {"regex": "a+"}),
        ("grammar", "root ::= x", {"ebnf": "root ::= x"}, {"grammar": "root ::= x"}),
        ("choice", '["a.b", "c"]', {"regex": r"(a\.b)|(c)"}, {"choice": ["a.b", "c"]}),
    ],
)
def test_structured_output(kind: Any, source: str, native: object, vllm: object) -> None:
    asked = request(SamplingParams(5, structured_output=StructuredOutput(kind, source, "x")))
    sampling = json.loads(NativeApi("w", None).body(asked))["sampling_params"]
    assert {name: sampling[name] for name in sampling if name in ("json_schema", "regex", "ebnf")} == native
    assert json.loads(VllmApi("w", None).body(asked))["sampling_params"]["structured_outputs"] == vllm


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70, -(2**70)])
def test_every_seed_is_one_that_the_worker_takes(seed: int) -> None:
    """To vLLM -1 is no seed; neither takes more than 64 bits."""
    asked = request(SamplingParams(5, seed=seed))
    native = json.loads(NativeApi("w", None).body(asked))["sampling_params"]["sampling_seed"]
    assert -(2**63) <= native < 2**63
    assert 0 <= json.loads(VllmApi("w", None).body(asked))["sampling_params"]["seed"] < 2**63


def test_what_a_worker_cannot_honour_is_named() -> None:
    for salt in ("a/b", "x" * 129):
        with pytest.raises(InvalidRequestError, match="cache_salt"):
            VllmApi("w", None).body(request(cache_salt=salt))


@pytest.mark.parametrize(
    ("settings", "honoured"),
    [
        ({}, set()),
        ({"version": "0.5.22"}, set()),
        ({"version": "0.5.23.post1"}, {"cache_salt"}),
        ({"version": "0.10.0"}, {"cache_salt"}),
        ({"enable_priority_scheduling": True}, {"priority"}),
        ({"enable_deterministic_inference": True}, {"seed"}),
        ({"publishers": []}, {"priority", "seed", "cache_salt"}),
    ],
)
def test_what_sglang_would_silently_leave_out_is_named(settings: dict[str, Any], honoured: set[str]) -> None:
    ignored = read_server_info({"kv_events": None, **settings}, "host", 0).ignored
    api = NativeApi("w", None, ignored=ignored)
    plain: dict[str, Any] = {"cache_salt": None, "params": SamplingParams(5)}
    asked: dict[str, dict[str, Any]] = {
        "priority": {"priority": 4},
        "seed": {"params": SamplingParams(5, seed=7)},
        "cache_salt": {"cache_salt": "pepper"},
    }
    api.body(request(**plain))
    api.body(request(**plain | {"params": SamplingParams(5, seed=7, temperature=0)}))
    for field, values in asked.items():
        if field in honoured:
            api.body(request(**plain | values))
            continue
        with pytest.raises(InvalidRequestError, match=f"^{field}: ") as caught:
            api.body(request(**plain | values))
        assert caught.value.param == field
        assert "pepper" not in str(caught.value)


@pytest.mark.parametrize(
    "event",
    [
        b"nonsense",
        b"{}",
        b'{"output_ids": [1], "meta_info": {"prompt_tokens": 1, "completion_tokens": 2}}',
        b'{"output_ids": [1], "index": 2, "meta_info": {"prompt_tokens": 1, "completion_tokens": 1}}',
        b'{"output_ids": [1], "meta_info": {"prompt_tokens": 1, "completion_tokens": 1, '
        b'"output_token_logprobs": [["x", 1]]}}',
    ],
)
def test_a_native_event_that_breaks_the_protocol(event: bytes) -> None:
    with pytest.raises(WireError, match="event of /generate"):
        list(NativeApi("w", None).answer(request()).take(event))


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ({"type": "abort", "message": "bad grammar", "status_code": 400}, InvalidRequestError),
        ({"type": "abort", "message": "The request queue is full.", "status_code": 503}, QueueFullError),
        ({"type": "abort"}, EngineFailedError),
    ],
)
def test_sglangs_abortions(reason: object, expected: type) -> None:
    meta = {"prompt_tokens": 1, "completion_tokens": 0, "finish_reason": reason}
    event = json.dumps({"output_ids": [], "meta_info": meta}).encode()
    with pytest.raises(expected):
        list(NativeApi("w", None).answer(request()).take(event))


def test_errors_in_streams() -> None:
    assert isinstance(refusal_in_stream("w", {"message": "no", "code": 400}), InvalidRequestError)
    assert isinstance(refusal_in_stream("w", {"message": "no", "code": "queue_full"}), QueueFullError)
    assert isinstance(refusal_in_stream("w", {"code": "request_failed"}), RequestFailedError)
    assert isinstance(refusal_in_stream("w", "broken"), EngineFailedError)
    event = b'{"error": {"message": "broken", "code": "engine_failed"}}'
    for api in (NativeApi("w", None), VllmApi("w", None)):
        with pytest.raises(EngineFailedError, match="broken"):
            list(api.answer(request()).take(event))


def test_refusals_without_openais_shape() -> None:
    assert refusal("w", 422, b'{"detail": [{"loc": ["body"]}]}').message.startswith("[{")
    assert refusal("w", 400, b"plain text").message == "plain text"
    late = refusal("w", 429, b"", {"retry-after": "99999"})
    assert late.retry_after_s == 60


def test_kvbeacons_own_entry_says_the_ports_and_the_state() -> None:
    entry: dict[str, Any] = {
        "rank": 1,
        "host": "*",
        "event_port": 7,
        "replay_port": None,
        "state": "publishing",
        "epoch": "e",
    }
    info: dict[str, Any] = {"dp_size": 2, "kv_events": None, "publishers": [{"rank": 0}, entry]}
    worker = read_server_info(info | {"internal_states": [{"dp_rank": 1, "num_blocks": 9}]}, "host", 1)
    assert worker.publisher is not None
    assert (worker.publisher.events, worker.publisher.replay) == ("tcp://host:7", None)
    assert (worker.kind, worker.num_blocks, worker.dp_rank) == ("kvbeacon", 9, 1)
    entry |= {"cache": "partial", "cache_reason": "late"}
    worker = read_server_info(info, "host", 1)
    assert worker.partial_cache == "it knows only a part itself: late"
    for state in ({"state": "unreachable"}, {"state": "unavailable", "reason": "down"}):
        with pytest.raises(WorkerError, match="rank 1 of the worker"):
            read_server_info(info | {"internal_states": [{"dp_rank": 1, **state}]}, "host", 1)


def test_loads_and_metrics() -> None:
    answer = {"loads": [{"dp_rank": 0}, {"dp_rank": 1, "num_running_reqs": 3, "num_used_tokens": 50}]}
    load = read_loads(answer, 1)
    assert load is not None
    assert (load.num_running_reqs, load.num_tokens, load.num_total_tokens) == (3, 50, 50)
    assert read_loads({"loads": "none"}, 1) is None
    text = 'vllm:x{engine="0"} 1.0\nvllm:x{engine="1",a="\\"b\\"",n="7"} 2.5\nvllm:y{} NaN nonsense\n# HELP'
    assert Metrics(text, "1").value("vllm:x") == 2.5
    assert Metrics(text, "1").label("vllm:x", "n") == 7
    assert Metrics(text, "1").value("vllm:y") is None


def test_such_a_rank_imports_no_torch() -> None:
    script = (
        "import sys, app.deployments.rank.dp_rank, app.engine.loading.remote_engine; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0
