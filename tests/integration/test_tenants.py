"""Tenants behind a gateway: each names itself in a header, and none learns of another's prompts."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from app import hashing
from app.deployments.ingress.api import build_api
from app.deployments.ingress.service import Service
from tests.support.graph.exchanges import cached_tokens, new_prompt, refused
from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import Json, tiny_args
from tests.support.graph.serve_graph import ServeGraph

HEADER = "X-Tenant"
NUM_HITS = 96
"""Of the 100 tokens of a `new_prompt`."""
# Everything that takes a prompt, found by its method: a new endpoint is tested here without being named.
# Routes ask the service only when they are called.
PATHS = build_api(Service.__new__(Service)).openapi()["paths"]
NO_RANK = ("/tokenize", "/detokenize")
"""These look into no cache, so they need no tenant."""
PROMPT_PATHS = sorted(
    path
    for path, methods in PATHS.items()
    if "post" in methods and "get" not in methods and path not in NO_RANK
)


@pytest.fixture
def graph(graphs: Graphs, tiny_model: str) -> ServeGraph:
    """Two ranks of a tiny model behind an ingress that wants tenants."""
    args = tiny_args(tiny_model)
    args["ingress"]["tenant_header"] = HEADER
    return graphs.get({"/": args})


def ask(
    graph: ServeGraph, tenant: str, prompt: list[int], *, rank: int | None = 0, **fields: Any
) -> httpx.Response:
    """A completion for `tenant`, on `rank` unless the router is to choose."""
    headers = {HEADER: tenant} | ({} if rank is None else {"X-Data-Parallel-Rank": str(rank)})
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0} | fields
    response = graph.http.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response


def test_everything_that_takes_a_prompt_is_known() -> None:
    assert [
        *("/generate", "/router/explain", "/v1/chat/completions", "/v1/completions"),
        *("/v1/messages", "/v1/messages/count_tokens", "/v1/responses"),
    ] == PROMPT_PATHS


@pytest.mark.parametrize("path", PROMPT_PATHS)
@pytest.mark.parametrize("content", [b'{"prompt": "a", "messages": []}', b"no json", b""])
def test_a_prompt_without_a_tenant_is_refused_whatever_it_is(
    graph: ServeGraph, path: str, content: bytes
) -> None:
    message = refused(graph.http.post(path, content=content), 400, param=HEADER, code="invalid_tenant")
    assert (
        message
        == f"{HEADER}: 0 headers; one header of 1 to 256 visible ASCII characters without commas is needed"
    )


@pytest.mark.parametrize(
    "values",
    [
        (b"",),
        (b"secret", b"secret"),
        (b"secret", b""),
        (b"secret,secret",),
        (b"secret one",),
        (b"secret" * 50,),
    ],
)
@pytest.mark.parametrize("path", PROMPT_PATHS)
def test_a_header_that_names_no_one_tenant_is_refused_and_not_shown(
    graph: ServeGraph, path: str, values: tuple[bytes, ...]
) -> None:
    body = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
    headers = [(HEADER.encode(), value) for value in values]
    response = graph.http.post(path, json=body | {"max_tokens": 1}, headers=headers)
    message = refused(response, 400, param=HEADER, code="invalid_tenant")
    assert message.startswith(f"{HEADER}: ")
    assert "cret" not in message


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("path", PROMPT_PATHS)
def test_a_tenant_that_isnt_ascii_is_refused_and_not_shown(
    graph: ServeGraph, path: str, encoding: str
) -> None:
    headers = [(HEADER.encode(), "sécret".encode(encoding))]
    response = graph.http.post(path, json={"prompt": "a"}, headers=headers)
    assert "cret" not in refused(response, 400, param=HEADER.lower(), code="invalid_header")


def test_what_takes_no_prompt_needs_no_tenant(graph: ServeGraph) -> None:
    for path in ("/health", "/v1/models", "/v1/models/tiny", "/model_info", "/router/ranks", "/v1/loads"):
        graph.get(path)
    graph.get("/health_generate")
    assert graph.get("/server_info")["config"]["ingress"]["tenant_header"] == HEADER


def test_a_tenant_finds_its_own_blocks_and_no_others(graph: ServeGraph) -> None:
    prompt = new_prompt()
    tenants = ("a", "a", "b", "A", "ab", "b", "a")
    cached = [cached_tokens(ask(graph, tenant, prompt)) for tenant in tenants]
    assert cached == [0, NUM_HITS, 0, 0, 0, NUM_HITS, NUM_HITS]


def test_the_case_of_the_headers_name_does_not_matter(graph: ServeGraph) -> None:
    prompt = new_prompt()
    ask(graph, "a", prompt)
    for name in ("x-tenant", "X-TENANT"):
        headers = {name: "a", "X-Data-Parallel-Rank": "0"}
        response = graph.http.post(
            "/v1/completions", json={"prompt": prompt, "max_tokens": 1}, headers=headers
        )
        assert cached_tokens(response) == NUM_HITS, name


def test_a_bodys_salt_divides_a_tenants_blocks_and_opens_no_other_tenants(graph: ServeGraph) -> None:
    prompt = new_prompt()

    def cached(tenant: str, salt: str | None = None) -> int:
        return cached_tokens(ask(graph, tenant, prompt, cache_salt=salt))

    assert [cached("a", "b"), cached("a", "b"), cached("a"), cached("a")] == [0, NUM_HITS, 0, NUM_HITS]
    combined = hashing.tenant_salt("a", "b")
    for salt in ("a", "b", "ab", "a\0b", "\1\0\0\0a\0b", combined[: hashing.MAX_SALT_CHARS]):
        assert cached("c", salt) == 0, salt
    assert cached("ab") == 0
    refused(
        graph.http.post(
            "/v1/completions", json={"prompt": prompt, "cache_salt": combined}, headers={HEADER: "c"}
        ),
        400,
        param="cache_salt",
    )


def test_answers_are_what_they_would_be_alone(graph: ServeGraph) -> None:
    """Text, logprobs and counts for a tenant whose prompt another one has sent before."""

    def answer(tenant: str, prompt: list[int], **fields: Any) -> Json:
        whole: Json = ask(graph, tenant, prompt, logprobs=3, **fields).json()
        return {"choices": whole["choices"], "usage": whole["usage"]}

    prompt = new_prompt()
    alone = answer("first", prompt, n=3, temperature=1, seed=7)
    assert answer("second", prompt, n=3, temperature=1, seed=7) == alone
    assert alone["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_chats_stream_is_its_tenants_too(graph: ServeGraph) -> None:
    text = " ".join(map(str, new_prompt()))
    fields: Any = {"messages": [{"role": "user", "content": text}], "max_tokens": 2, "stream": True}
    fields |= {"stream_options": {"include_usage": True}, "model": "tiny"}

    def cached(tenant: str) -> int:
        headers = {HEADER: tenant, "X-Data-Parallel-Rank": "0"}
        with openai.OpenAI(base_url=f"{graph.url}/v1", api_key="none", default_headers=headers) as client:
            *_, last = client.chat.completions.create(**fields)
        return int(last.usage.prompt_tokens_details.cached_tokens)

    first, again, other = cached("a"), cached("a"), cached("b")
    assert first == other < 32  # a template's beginning is each tenant's own too
    assert again > 100


def test_sglangs_api_keeps_tenants_apart_too(graph: ServeGraph) -> None:
    prompt = new_prompt()

    def cached(tenant: str, **fields: Any) -> int:
        body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 1}, **fields}
        headers = {HEADER: tenant, "X-Data-Parallel-Rank": "0"}
        response = graph.http.post("/generate", json=body, headers=headers)
        assert response.status_code == 200, response.text
        number: int = response.json()["meta_info"]["cached_tokens"]
        return number

    assert [cached(tenant) for tenant in ("a", "a", "b")] == [0, NUM_HITS, 0]
    # A salt as long as a tenant's opens nothing: where there are tenants, each has its own of it.
    assert cached("c", cache_salt=hashing.tenant_salt("a", None)) == 0
    assert cached_tokens(ask(graph, "a", prompt)) == NUM_HITS


def test_the_router_looks_for_the_hashes_that_the_tenants_rank_publishes(graph: ServeGraph) -> None:
    for tenant, rank in (("a", 1), ("b", 0)):
        prompt = new_prompt()
        ask(graph, tenant, prompt, rank=rank, cache_salt="own")
        graph.wait_until_followed()
        for _ in range(3):
            response = ask(graph, tenant, prompt, rank=None, cache_salt="own")
            assert response.headers["x-dp-rank"] == str(rank)
            assert cached_tokens(response) == NUM_HITS


def test_a_dry_run_sees_its_tenants_blocks_and_no_others(graph: ServeGraph) -> None:
    prompt = new_prompt()
    ask(graph, "a", prompt, rank=1)
    ask(graph, "b", prompt, rank=0, cache_salt="own")
    graph.wait_until_followed()

    def cached(tenant: str, **fields: Any) -> list[int]:
        body = {"prompt": prompt, **fields}
        receipt = graph.http.post("/router/explain", json=body, headers={HEADER: tenant}).json()
        return [row["cached_tokens"] for row in receipt["ranks"]]

    assert cached("a") == [0, NUM_HITS]
    assert cached("b") == cached("c") == cached("a", cache_salt="own") == [0, 0]
    assert cached("b", cache_salt="own") == [NUM_HITS, 0]


def test_one_request_id_for_two_tenants_mixes_nothing_up(graph: ServeGraph) -> None:
    prompt = new_prompt()

    def send(tenant: str) -> Json:
        body = {"prompt": prompt, "max_tokens": 20, "temperature": 0}
        headers = {HEADER: tenant, "x-request-id": "same", "X-Data-Parallel-Rank": "0"}
        answer: Json = graph.http.post("/v1/completions", json=body, headers=headers).json()
        return answer

    with ThreadPoolExecutor(2) as clients:
        ours, theirs = clients.map(send, ("a", "b"))
    assert ours["id"] != theirs["id"]
    assert ours["choices"] == theirs["choices"]
    refused(graph.http.get("/router/decisions/same"), 404, code="decision_not_found")
    for answer in (ours, theirs):
        receipt = graph.get(f"/router/decisions/{answer['id']}")
        assert answer["id"].endswith(receipt["request_id"])
        assert [attempt["winner"] for attempt in receipt["attempts"]] == [0]
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_neither_tenant_nor_salt_is_written_or_said_anywhere(graph: ServeGraph) -> None:
    tenant, salt = "tenant-7f3a9c", "salt-51be20"
    answers = [ask(graph, tenant, new_prompt(), cache_salt=salt) for _ in range(2)]
    body = {"prompt": "a", "cache_salt": salt * 99}
    answers.append(graph.http.post("/v1/completions", json=body, headers={HEADER: tenant}))
    answers.append(graph.http.post("/v1/completions", json={"prompt": "a"}, headers={HEADER: f"{tenant},"}))
    assert [answer.status_code for answer in answers] == [200, 200, 400, 400]
    said = [answer.text + str(answer.headers) for answer in answers]
    said += [
        json.dumps(graph.get(path)) for path in ("/server_info", "/model_info", "/router/ranks", "/health")
    ]
    logs = graph.logs()
    assert "POST /v1/completions 400" in logs  # what Serve writes of a request is among them
    for secret in (tenant, salt, hashing.tenant_salt(tenant, salt)[:32]):
        assert secret not in "".join(said)
        assert secret not in logs


def test_stored_responses_are_a_tenants_own(graph: ServeGraph) -> None:
    def asked(tenant: str, **fields: Any) -> httpx.Response:
        body = {"input": "a", "max_output_tokens": 2} | fields
        return graph.http.post("/v1/responses", json=body, headers={HEADER: tenant})

    first = asked("one").json()
    path, item = f"/v1/responses/{first['id']}", {"id": first["output"][0]["id"]}
    for other in ("two", "One"):
        headers = {HEADER: other}
        for method, place in (("GET", path), ("DELETE", path), ("GET", f"{path}/input_items")):
            refused(graph.http.request(method, place, headers=headers), 404, code="response_not_found")
        message = refused(asked(other, previous_response_id=first["id"]), 400)
        assert message == refused(asked("one", previous_response_id="resp_0"), 400).replace(
            "resp_0", first["id"]
        )
        refused(asked(other, input=[item]), 400, code="item_not_found")
    refused(graph.http.get(path), 400, code="invalid_tenant")
    assert asked("one", previous_response_id=first["id"]).status_code == 200
    assert graph.http.get(path, headers={HEADER: "one"}).json() == first
    assert graph.http.delete(path, headers={HEADER: "one"}).json()["deleted"]
