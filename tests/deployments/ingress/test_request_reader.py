"""Requests as they are read: headers, body and tokens become one value, or an error that names its fault."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from app import hashing
from app.api.bodies import PromptBody, parse_any
from app.api.native.request import GenerateBody, parse_generate
from app.api.openai.prompts import parse_texts
from app.api.openai.requests import ChatRequest, TextRequest, parse_chat, parse_text
from app.deployments.ingress.request_reader import LONG_BODY, PreparedRequest, RequestReader
from app.errors import (
    InvalidRequestError,
    ModelNameError,
    PromptTooLongError,
    RequestError,
    RequestTooLargeError,
)
from app.settings.ingress import IngressConfig
from app.settings.model import ModelConfig
from app.text.chat_prompt import ChatPrompter
from app.text.output.formats import OutputFormats
from app.text.tokenizer import Tokenizer

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
TEXT: dict[str, Any] = {"prompt": "Hello"}


class Body:
    """A request's body as a server hands it over, in parts; counts those that were read."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = list(parts)
        self.num_read = 0

    async def receive(self) -> Message:
        part = self._parts[self.num_read]
        self.num_read += 1
        return {"type": "http.request", "body": part, "more_body": self.num_read < len(self._parts)}


def request_of(body: Body, headers: Mapping[str, str]) -> Request:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, body.receive)


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


@pytest.fixture
def reader(tokenizer: Tokenizer) -> RequestReader:
    return new_reader(tokenizer)


def new_reader(tokenizer: Tokenizer, **settings: Any) -> RequestReader:
    config = IngressConfig(**settings)
    prompter = ChatPrompter(tokenizer, ModelConfig())
    outputs = OutputFormats(tokenizer, ModelConfig(), constrains=True)
    return RequestReader(
        config, tokenizer, prompter, outputs, model_names=("mine", "org/mine"), max_model_len=8192
    )


async def read(
    reader: RequestReader,
    fields: dict[str, Any],
    parse: Callable[[bytes], PromptBody] = parse_text,
    *,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> PreparedRequest[PromptBody]:
    return await reader.read(request_of(Body(json.dumps(fields).encode()), headers), parse)


async def refusal(reader: RequestReader, fields: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await read(reader, fields)
    return caught.value


async def test_a_chat_is_rendered_and_tokenized(reader: RequestReader, tokenizer: Tokenizer) -> None:
    prepared = await read(reader, CHAT | {"n": 3, "priority": -2, "temperature": 0.5}, parse_chat)
    prompt = tokenizer.render_chat(CHAT["messages"])
    assert prepared.generate.prompt_token_ids == tokenizer.encode(prompt)
    assert (prepared.generate.n, prepared.generate.priority) == (3, -2)
    assert prepared.generate.params.temperature == 0.5
    assert isinstance(prepared.body, ChatRequest)
    assert (prepared.pinned, prepared.session_id, prepared.generate.cache_salt) == (None, None, None)


async def test_a_text_is_tokenized_and_token_ids_are_taken_as_they_are(
    reader: RequestReader, tokenizer: Tokenizer
) -> None:
    prepared = await read(reader, TEXT)
    assert prepared.generate.prompt_token_ids == tokenizer.encode("Hello", add_special_tokens=True)
    assert isinstance(prepared.body, TextRequest)
    prepared = await read(reader, {"prompt": [5, 6, 7]})
    assert prepared.generate.prompt_token_ids == [5, 6, 7]


async def read_all(reader: RequestReader, prompts: list[Any]) -> list[PreparedRequest[TextRequest]]:
    return await reader.read_all(request_of(Body(json.dumps({"prompt": prompts}).encode()), {}), parse_texts)


async def test_each_of_several_prompts_has_an_id_of_the_answers(reader: RequestReader) -> None:
    (one,) = await read_all(reader, ["Hello"])
    assert "-" not in one.generate.request_id
    first, second = await read_all(reader, ["Hello", [5, 6]])
    answer_id, _, number = first.generate.request_id.rpartition("-")
    assert (number, second.generate.request_id) == ("0", f"{answer_id}-1")
    assert second.generate.prompt_token_ids == [5, 6]


async def test_the_prompt_at_fault_is_named(reader: RequestReader) -> None:
    for prompts, place in ((["a", "b", [5] * 9000], 2), ([[5] * 9000, "b"], 0)):
        with pytest.raises(PromptTooLongError, match=rf"prompt {place} \(from 0\)") as caught:
            await read_all(reader, prompts)
        assert caught.value.param == f"prompt.{place}"
    with pytest.raises(PromptTooLongError, match=r"^the prompt has 9000 tokens"):
        await read_all(reader, [[5] * 9000])


async def test_an_error_after_the_body_tells_of_ignored_fields(reader: RequestReader) -> None:
    request = request_of(Body(b'{"prompt": "a", "model": "other", "opts": 1}'), {})
    with pytest.raises(ModelNameError):
        await reader.read(request, parse_text)
    assert request.state.ignored_fields == ("opts",)
    request = request_of(Body(b'{"prompt": "a", "n": 0, "opts": 1}'), {})
    with pytest.raises(InvalidRequestError) as caught:
        await reader.read(request, parse_text)
    assert caught.value.ignored_fields == ("opts",)


async def test_a_body_for_any_endpoint_is_read_by_what_it_has(reader: RequestReader) -> None:
    assert isinstance((await read(reader, CHAT, parse_any)).body, ChatRequest)
    assert isinstance((await read(reader, TEXT, parse_any)).body, TextRequest)
    assert isinstance((await read(reader, {"text": "Hello"}, parse_any)).body, GenerateBody)
    assert isinstance((await read(reader, {"input_ids": [5]}, parse_any)).body, GenerateBody)


@pytest.mark.parametrize("body", [b"", b"[]", b'"messages"', b'{"messages"', b"null"])
async def test_a_body_that_is_for_none_is_refused(reader: RequestReader, body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        await reader.read(request_of(Body(body), {}), parse_any)


async def test_a_native_request_is_read_like_the_others(reader: RequestReader, tokenizer: Tokenizer) -> None:
    fields = {"text": ["Hello"], "sampling_params": {"n": 2}, "priority": 3, "session_id": "mine"}
    prepared = await read(reader, fields, parse_generate)
    hello = tokenizer.encode("Hello", add_special_tokens=True)
    assert prepared.generate.prompt_token_ids == hello
    assert (prepared.generate.n, prepared.generate.priority, prepared.session_id) == (2, -3, "mine")
    assert prepared.generate.params.max_tokens == 128
    headers = {"X-Data-Parallel-Rank": "1", "X-Session-ID": "the-header"}
    prepared = await read(reader, fields | {"data_parallel_rank": 0}, parse_generate, headers=headers)
    assert (prepared.pinned, prepared.session_id) == ((1, "X-Data-Parallel-Rank"), "the-header")
    with pytest.raises(InvalidRequestError, match="input_ids: no tokens") as caught:
        await read(reader, {"input_ids": []}, parse_generate)
    assert caught.value.param == "input_ids"
    no_limit = await read(reader, {"text": "a", "sampling_params": {"max_new_tokens": None}}, parse_generate)
    assert no_limit.generate.params.max_tokens == sys.maxsize


async def test_a_long_body_is_read_like_a_short_one(reader: RequestReader, tokenizer: Tokenizer) -> None:
    prompt = "word " * 5000
    assert len(prompt) > LONG_BODY
    prepared = await read(reader, {"prompt": prompt})
    assert prepared.generate.prompt_token_ids == tokenizer.encode(prompt, add_special_tokens=True)
    error = await refusal(reader, {"prompt": prompt, "best_of": 5})
    assert (error.param, error.code) == ("best_of", "unsupported_field")


async def test_fields_that_change_nothing_are_told(reader: RequestReader) -> None:
    fields = CHAT | {"opts": 1, "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": True}}
    prepared = await read(reader, fields, parse_chat)
    assert prepared.ignored_fields == ("opts", "chat_template_kwargs.enable_thinking", "reasoning_effort")
    assert (await read(reader, TEXT | {"opts": 1})).ignored_fields == ("opts",)
    assert (await read(reader, TEXT)).ignored_fields == ()


async def test_the_tokenizers_own_tokens_can_be_left_out(tokenizer: Tokenizer, reader: RequestReader) -> None:
    prepared = await read(reader, TEXT | {"add_special_tokens": False})
    assert prepared.generate.prompt_token_ids == tokenizer.encode("Hello")


async def test_a_body_comes_in_parts_and_no_more_than_the_limit_is_read(tokenizer: Tokenizer) -> None:
    reader = new_reader(tokenizer, max_request_bytes=20)
    whole = Body(b'{"prompt"', b': "Hello"', b"}")
    prepared = await reader.read(request_of(whole, {}), parse_text)
    assert prepared.generate.prompt_token_ids == tokenizer.encode("Hello", add_special_tokens=True)
    large = Body(b"x" * 15, b"x" * 15, b"x" * 15)
    with pytest.raises(RequestTooLargeError, match="the body is larger than 20 bytes"):
        await reader.read(request_of(large, {}), parse_text)
    assert large.num_read == 2


async def test_every_request_has_an_id_of_its_own(reader: RequestReader) -> None:
    first, second = await read(reader, TEXT), await read(reader, TEXT)
    assert first.generate.request_id != second.generate.request_id


async def test_output_is_limited_as_the_body_says_or_not_at_all(reader: RequestReader) -> None:
    assert (await read(reader, TEXT)).generate.params.max_tokens == 16
    assert (await read(reader, CHAT | {"max_tokens": 5}, parse_chat)).generate.params.max_tokens == 5
    assert (await read(reader, CHAT, parse_chat)).generate.params.max_tokens == sys.maxsize


async def test_the_rank_and_the_session_that_a_request_names(reader: RequestReader) -> None:
    headers = {"X-Data-Parallel-Rank": "1", "X-Session-ID": "mine"}
    prepared = await read(reader, TEXT, headers=headers)
    assert (prepared.pinned, prepared.session_id) == ((1, "X-Data-Parallel-Rank"), "mine")
    assert (await read(reader, TEXT | {"routed_dp_rank": 0})).pinned == (0, "routed_dp_rank")
    assert (await read(reader, TEXT | {"routed_dp_rank": 2})).pinned == (2, "routed_dp_rank"), "routers know"


async def test_a_salt_is_its_tenants_or_without_tenants_the_bodys(tokenizer: Tokenizer) -> None:
    salted, headers = TEXT | {"cache_salt": "salt"}, {"X-Tenant": "a"}
    assert (await read(new_reader(tokenizer), salted, headers=headers)).generate.cache_salt == "salt"
    reader = new_reader(tokenizer, tenant_header="X-Tenant")
    for fields, salt in ((TEXT, None), (salted, "salt")):
        prepared = await read(reader, fields, headers=headers)
        assert prepared.generate.cache_salt == hashing.tenant_salt("a", salt)


@pytest.mark.parametrize("headers", [{}, {"x-tenant": "a", "x-session-id": "one,two"}])
async def test_a_request_with_a_wrong_name_is_refused_before_its_body_is_read(
    tokenizer: Tokenizer, headers: dict[str, str]
) -> None:
    body = Body(b'{"prompt": "Hello"}')
    reader = new_reader(tokenizer, tenant_header="X-Tenant")
    with pytest.raises(InvalidRequestError):
        await reader.read(request_of(body, headers), parse_text)
    assert body.num_read == 0


async def test_a_model_that_is_not_served_here_is_named(reader: RequestReader) -> None:
    assert (await read(reader, TEXT | {"model": "mine"})).body.model == "mine"
    reader.check_model_name("mine")
    error = await refusal(reader, TEXT | {"model": "other"})
    assert isinstance(error, ModelNameError)
    assert error.message == "model = 'other'; served here: 'mine' or 'org/mine'"


async def test_a_prompt_has_at_least_one_token(reader: RequestReader) -> None:
    error = await refusal(reader, {"prompt": ""})
    assert (error.message, error.param) == ("prompt: no tokens; at least one is needed", "prompt")


async def test_a_prompt_fits_the_context(reader: RequestReader) -> None:
    assert len((await read(reader, {"prompt": [7] * 8192})).generate.prompt_token_ids) == 8192
    error = await refusal(reader, {"prompt": [7] * 8193})
    assert isinstance(error, PromptTooLongError)
    assert error.message == "the prompt has 8193 tokens; the context is 8192"
    assert error.param == "prompt"
