"""A response out of a rank's tokens: whole and streamed, with thoughts, and when the rank is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.api.responses.answer import ResponseShape
from app.api.responses.request import parse_response
from app.deployments.ingress.answers.responses import stream_response, whole_response
from app.deployments.messages import Refusal
from app.errors import EngineFailedError, RankDiedError
from app.generation import TokenChunk, TokenLogprobs
from app.text.output.formats import OutputFormat
from app.text.tokenizer import Tokenizer
from tests.support.fake_deployments import begun
from tests.support.response_events import Json, checked_response

SPEECH = '<think>Let me see.</think>\n\nIt is <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
BODY = {"input": "a", "tools": [{"type": "function", "name": "f"}]}


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


def shape_of(**more: Any) -> ResponseShape:
    body = parse_response(json.dumps(BODY).encode())
    offers = {offer.name: offer for offer in body.offers}
    output = OutputFormat("hermes", frozenset(offers), "possible")
    return ResponseShape("1", "m", body.echo(), offers=offers, output=output, **more)


def chunks_of(tokenizer: Tokenizer, text: str, finish_reason: str | None = "stop") -> list[TokenChunk]:
    """A chunk for each token, each with its logprob."""
    token_ids = tokenizer.encode(text, False)
    ends = [None] * (len(token_ids) - 1) + [finish_reason]
    scores = [TokenLogprobs(-0.5, ())]
    pairs = zip(token_ids, ends, strict=True)
    return [TokenChunk([token_id], 9, 4, end, 0, scores) for token_id, end in pairs]


async def streamed(shape: ResponseShape, tokenizer: Tokenizer, steps: list[Any], kept: list[Json]) -> Json:
    """The response of a well-formed stream."""
    stream = (await begun(steps)).stream
    lines = stream_response(
        shape, stream, tokenizer.text_stream(), missed=lambda: {"tail_tokens": 5}, keep=kept.append
    )
    return checked_response([json.loads(line.split(b"data: ")[1]) async for line in lines])


async def test_whole_and_streamed_are_the_same(tokenizer: Tokenizer) -> None:
    shape, kept = shape_of(is_stored=True), list[Json]()
    chunks = chunks_of(tokenizer, SPEECH)
    response = await streamed(shape, tokenizer, list(chunks), kept)
    stream = (await begun(list(chunks))).stream
    whole = await whole_response(
        shape, stream, tokenizer.text_stream(), missed=lambda: {"tail_tokens": 5}, keep=kept.append
    )
    assert whole == response | {"completed_at": whole["completed_at"]}
    assert kept == [response, whole]
    thoughts, message, call = response["output"]
    assert thoughts["content"][0]["text"] == "Let me see."
    assert message["content"][0]["text"] == "It is"
    assert (call["name"], call["arguments"]) == ("f", '{"a": 1}')
    usage = response["usage"]
    assert usage["input_tokens_details"] == {"cached_tokens": 4, "cache_write_tokens": 0, "tail_tokens": 5}
    num_thoughts = usage["output_tokens_details"]["reasoning_tokens"]
    assert 4 < num_thoughts < usage["output_tokens"] == len(chunks)


async def test_logprobs_are_those_of_the_message(tokenizer: Tokenizer) -> None:
    response = await streamed(
        shape_of(spell=tokenizer.spell), tokenizer, chunks_of(tokenizer, "It is Paris."), []
    )
    entries = response["output"][0]["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in entries) == "It is Paris."


async def test_a_lost_rank_ends_a_stream_with_a_failed_response(tokenizer: Tokenizer) -> None:
    kept: list[Json] = []
    steps: list[Any] = [*chunks_of(tokenizer, "It is", None), Refusal(EngineFailedError("it broke"))]
    response = await streamed(shape_of(), tokenizer, steps, kept)
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert "rank" in response["error"]["message"]
    assert response["output"][0]["content"][0]["text"] == "It is"
    assert kept == []
    stream = (await begun(steps)).stream
    with pytest.raises(RankDiedError):
        await whole_response(shape_of(), stream, tokenizer.text_stream(), missed=dict, keep=kept.append)
