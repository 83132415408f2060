"""Texts that begin with their prompts, whole and streamed, with the real tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.api.openai.logprobs import Echo, Json
from app.api.openai.responses import AnswerShape
from app.deployments.ingress.answers.completions import stream_answer, whole_answer
from app.generation import TokenChunk, TokenLogprobs
from app.text.tokenizer import Tokenizer
from tests.support.fake_deployments import begun

TEXT = "<|im_start|>Zwölf 🙂"


@pytest.fixture(scope="session")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


def scored(token_ids: Sequence[int]) -> list[TokenLogprobs]:
    return [TokenLogprobs(-float(place + 1), ((7, -0.5),)) for place, _ in enumerate(token_ids)]


def chunks(prompt: list[int], output: list[int]) -> list[TokenChunk]:
    """A chunk for each token, with everything that a rank has said of the prompt in the first one."""
    first, *others = [TokenChunk([each], len(prompt), 0, logprobs=scored([each])) for each in output]
    last = TokenChunk([], len(prompt), 0, "length", logprobs=[])
    return [replace(first, prompt_logprobs=scored(prompt[1:])), *others, last]


async def both(shape: AnswerShape, messages: list[TokenChunk], tokenizer: Tokenizer) -> tuple[Json, Json]:
    """The choice of the whole answer, and the same put together from a stream."""
    whole = await whole_answer(shape, (await begun(messages)).stream, tokenizer.text_stream())
    stream = stream_answer(shape, (await begun(messages)).stream, tokenizer.text_stream(), usage="none")
    events = [json.loads(line.removeprefix(b"data: ")) async for line in stream if b"[DONE]" not in line]
    choices = [event["choices"][0] for event in events]
    parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    streamed = {
        "text": "".join(choice["text"] for choice in choices),
        "logprobs": {name: [each for part in parts for each in part[name]] for name in parts[0]}
        if parts
        else None,
        "finish_reason": choices[-1]["finish_reason"],
    }
    (choice,) = whole["choices"]
    return {name: choice[name] for name in streamed}, streamed


async def test_the_prompt_stands_before_the_output(tokenizer: Tokenizer) -> None:
    prompt, output = tokenizer.encode(TEXT), tokenizer.encode(" und mehr")
    shape = AnswerShape("text", "1", "m", echoes=[Echo(TEXT, prompt)])
    whole, streamed = await both(shape, chunks(prompt, output), tokenizer)
    assert whole == streamed == {"text": TEXT + " und mehr", "logprobs": None, "finish_reason": "length"}


async def test_every_token_of_both_has_an_entry(tokenizer: Tokenizer) -> None:
    prompt, output = tokenizer.encode(TEXT), tokenizer.encode(" und mehr")
    shape = AnswerShape("text", "1", "m", echoes=[Echo(TEXT, prompt)], spell=tokenizer.spell)
    whole, streamed = await both(shape, chunks(prompt, output), tokenizer)
    assert whole == streamed
    logprobs = whole["logprobs"]
    assert {len(each) for each in logprobs.values()} == {len(prompt) + len(output)}
    assert logprobs["token_logprobs"][: len(prompt)] == [None, *(-float(n) for n in range(1, len(prompt)))]
    assert logprobs["top_logprobs"][0] is None
    assert all(-0.5 in each.values() for each in logprobs["top_logprobs"][1:])
    assert logprobs["tokens"][0] == "<|im_start|>"
    offsets = logprobs["text_offset"]
    assert offsets[:2] == [0, len("<|im_start|>")]
    assert offsets[len(prompt)] == len(TEXT), "the output goes on where the prompt ends"
    assert offsets == sorted(offsets)


async def test_a_beginning_that_the_tokenizer_has_added_takes_no_place(tokenizer: Tokenizer) -> None:
    prompt = [*tokenizer.encode("<|im_start|>"), *tokenizer.encode("ab cd")]
    shape = AnswerShape("text", "1", "m", echoes=[Echo("ab cd", prompt)], spell=tokenizer.spell)
    whole, _ = await both(shape, chunks(prompt, [5]), tokenizer)
    assert whole["logprobs"]["text_offset"][:2] == [0, 0]


@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_where_no_output_is_wanted_none_is_shown_or_counted(tokenizer: Tokenizer, reason: str) -> None:
    prompt = tokenizer.encode(TEXT)
    chunk = TokenChunk([5], 9, 0, reason, logprobs=scored([5]), prompt_logprobs=scored(prompt[1:]))
    echoes = [Echo(TEXT, prompt)]
    shape = AnswerShape("text", "1", "m", echoes=echoes, spell=tokenizer.spell, shows_output=False)
    whole, streamed = await both(shape, [chunk], tokenizer)
    assert whole == streamed
    assert (whole["text"], whole["finish_reason"]) == (TEXT, "length")
    assert len(whole["logprobs"]["tokens"]) == len(prompt)
    answer = await whole_answer(shape, (await begun([chunk])).stream, tokenizer.text_stream())
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (9, 0)
    bare: Any = AnswerShape("text", "1", "m", shows_output=False)
    whole, streamed = await both(bare, [chunk], tokenizer)
    assert whole == streamed == {"text": "", "logprobs": None, "finish_reason": "length"}
