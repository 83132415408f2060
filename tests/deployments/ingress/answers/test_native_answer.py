"""A rank's chunks as answers of `/generate`; only the transport from the rank is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.api.native.answer import NativeShape
from app.deployments.ingress.answers.native import stream_native, whole_native
from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.deployments.messages import RankMessage, Refusal
from app.errors import EngineFailedError, RankDiedError
from app.generation import TokenChunk
from app.text.tokenizer import Tokenizer
from tests.support.fake_deployments import begun

CHUNKS = [TokenChunk([504], 5, 0), TokenChunk([3575], 5, 0), TokenChunk([282], 5, 0, "length")]
SHAPE = NativeShape("ours", None, 1, False, frozenset(), None, None, is_incremental=True)


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


async def events_of(stream: RankStream, tokenizer: Tokenizer) -> list[Any]:
    """The events, parsed, without the `[DONE]` that ends them."""
    lines = [line async for line in stream_native(SHAPE, stream, tokenizer.text_stream())]
    assert lines[-1] == b"data: [DONE]\n\n"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


async def test_an_answer_in_one_piece_and_as_a_stream(tokenizer: Tokenizer) -> None:
    stream, call, results = await begun(CHUNKS)
    whole: Any = await whole_native(SHAPE, stream, tokenizer.text_stream())
    assert (whole["text"], whole["output_ids"]) == ("The capital of", [504, 3575, 282])
    assert whole["meta_info"]["dp_rank"] == 1
    assert (call.num_cancelled, results) == (1, ["finished"])
    events = await events_of((await begun(CHUNKS))[0], tokenizer)
    assert "".join(event["text"] for event in events) == whole["text"]


async def test_samples_are_kept_apart(tokenizer: Tokenizer) -> None:
    messages = [replace(chunk, index=index) for chunk in CHUNKS for index in (1, 0)]
    shape = replace(SHAPE, num_samples=2)
    texts = [tokenizer.text_stream() for _ in range(2)]
    answers: Any = await whole_native(shape, (await begun(messages, 2))[0], *texts)
    assert [answer["meta_info"]["id"] for answer in answers] == ["ours_0", "ours_1"]
    assert [answer["text"] for answer in answers] == ["The capital of"] * 2


async def test_what_breaks_off_is_an_error(tokenizer: Tokenizer) -> None:
    broken: list[RankMessage] = [CHUNKS[0], Refusal(EngineFailedError("the engine broke"))]
    first, error = await events_of((await begun(broken))[0], tokenizer)
    assert first["text"] == "The"
    assert error["error"]["code"] == "rank_died"
    assert "rank 1 failed (the engine broke) while it answered" in error["error"]["message"]
    stream, call, results = await begun(broken)
    with pytest.raises(RankDiedError, match="the engine broke"):
        await whole_native(SHAPE, stream, tokenizer.text_stream())
    assert (call.num_cancelled, results) == (1, ["died"])


async def test_a_stream_that_just_ends_is_an_error(tokenizer: Tokenizer) -> None:
    *_, error = await events_of((await begun(CHUNKS[:2]))[0], tokenizer)
    assert error["error"]["code"] == "rank_died"
