"""SGLang's answers, made of a rank's tokens with the real tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.api.native.answer import Json, NativeSample, NativeShape
from app.generation import TokenChunk, TokenLogprobs
from app.text.tokenizer import Tokenizer

TEXT = "Zwölf Boxkämpfer 🙂 語 — the end"


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


def new_shape(tokenizer: Tokenizer, **fields: Any) -> NativeShape:
    defaults: Any = {
        "request_id": "ours",
        "rid": None,
        "num_samples": 1,
        "is_list": False,
        "ending_token_ids": frozenset(tokenizer.eos_token_ids),
        "num_likeliest": None,
        "name_of": None,
        "is_incremental": False,
    }
    return NativeShape(**(defaults | fields))


def chunks(token_ids: list[int], finish_reason: str = "length", size: int = 1) -> list[TokenChunk]:
    """`size` tokens each."""
    parts = [token_ids[start : start + size] for start in range(0, len(token_ids), size)]
    *others, last = [TokenChunk(part, 20, 16) for part in parts]
    return [*others, replace(last, finish_reason=finish_reason)]


def events_of(
    shape: NativeShape, tokenizer: Tokenizer, messages: list[TokenChunk], stop: tuple[str, ...] = ()
) -> list[Json]:
    sample = NativeSample(shape, 1, 0, tokenizer.text_stream(stop))
    events = []
    for chunk in messages:
        sample.take(chunk)
        events.append(sample.event())
    return events


def whole_of(
    shape: NativeShape, tokenizer: Tokenizer, messages: list[TokenChunk], stop: tuple[str, ...] = ()
) -> Json:
    sample = NativeSample(shape, 1, 0, tokenizer.text_stream(stop))
    for chunk in messages:
        sample.take(chunk)
    return sample.whole()


def test_a_whole_answer(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(TEXT)
    answer = whole_of(new_shape(tokenizer, rid="mine"), tokenizer, chunks(token_ids))
    latency = answer["meta_info"].pop("e2e_latency")
    assert answer == {
        "text": TEXT,
        "output_ids": token_ids,
        "meta_info": {
            "id": "mine",
            "request_id": "ours",
            "finish_reason": {"type": "length", "length": len(token_ids)},
            "prompt_tokens": 20,
            "completion_tokens": len(token_ids),
            "cached_tokens": 16,
            "dp_rank": 1,
        },
    }
    assert 0 <= latency < 60


def test_without_a_rid_the_id_is_ours(tokenizer: Tokenizer) -> None:
    assert whole_of(new_shape(tokenizer), tokenizer, chunks([504]))["meta_info"]["id"] == "ours"


@pytest.mark.parametrize("size", [1, 3])
def test_events_have_everything_so_far(tokenizer: Tokenizer, size: int) -> None:
    token_ids = tokenizer.encode(TEXT)
    events = events_of(new_shape(tokenizer), tokenizer, chunks(token_ids, size=size))
    for number, event in enumerate(events, 1):
        assert event["output_ids"] == token_ids[: number * size]
        assert event["meta_info"]["completion_tokens"] == len(event["output_ids"])
        assert TEXT.startswith(event["text"])
        assert "index" not in event
    assert [event["meta_info"]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert "e2e_latency" not in events[0]["meta_info"]
    whole = whole_of(new_shape(tokenizer), tokenizer, chunks(token_ids, size=size))
    for answer in (whole, events[-1]):
        assert answer["meta_info"].pop("e2e_latency") >= 0
    assert events[-1] == whole


@pytest.mark.parametrize("size", [1, 3])
def test_incremental_events_have_what_is_new_and_count_all(tokenizer: Tokenizer, size: int) -> None:
    token_ids = tokenizer.encode(TEXT)
    shape = new_shape(tokenizer, is_incremental=True)
    events = events_of(shape, tokenizer, chunks(token_ids, size=size))
    assert "".join(event["text"] for event in events) == TEXT
    assert [each for event in events for each in event["output_ids"]] == token_ids
    counts = [event["meta_info"]["completion_tokens"] for event in events]
    assert counts == [min(number * size, len(token_ids)) for number in range(1, len(events) + 1)]


def test_what_ended_an_output(tokenizer: Tokenizer) -> None:
    def reason(token_ids: list[int], stop: tuple[str, ...] = (), **fields: Any) -> Any:
        shape = new_shape(tokenizer, **fields)
        answer = whole_of(shape, tokenizer, chunks(token_ids, "stop"), stop)
        return answer["text"], answer["meta_info"]["finish_reason"]

    one_two = tokenizer.encode("one, two, three")
    (eos,) = tokenizer.eos_token_ids
    assert reason([*one_two, eos]) == ("one, two, three", {"type": "stop", "matched": eos})
    assert reason(one_two, (", thr",)) == ("one, two", {"type": "stop", "matched": ", thr"})
    ending = frozenset((eos, one_two[-1]))
    stopped = {"type": "stop", "matched": one_two[-1]}
    assert reason(one_two, ending_token_ids=ending) == ("one, two, three", stopped)
    # A structured output that is complete.
    assert reason(one_two) == ("one, two, three", {"type": "stop", "matched": None})


def scored(token_ids: list[int]) -> list[TokenChunk]:
    """Chunks in which token n's logprob is -n / 100000, and the likeliest are 198, a line's end, and 504."""
    return [
        replace(chunk, logprobs=[TokenLogprobs(-chunk.token_ids[0] / 1e5, ((198, -0.25), (504, -2.5)))])
        for chunk in chunks(token_ids)
    ]


def test_logprobs(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("a語")
    shape = new_shape(tokenizer, num_likeliest=2)
    info = whole_of(shape, tokenizer, scored(token_ids))["meta_info"]
    assert info["output_token_logprobs"] == [(-each / 1e5, each, None) for each in token_ids]
    assert info["output_top_logprobs"] == [[(-0.25, 198, None), (-2.5, 504, None)]] * len(token_ids)
    assert info["output_token_logprobs_length"] == len(token_ids)
    assert info["input_token_logprobs"] == info["input_top_logprobs"] == []

    named = replace(shape, num_likeliest=0, name_of=lambda token_id: tokenizer.spell(token_id).name)
    info = whole_of(named, tokenizer, scored(token_ids))["meta_info"]
    assert "".join(name for _, _, name in info["output_token_logprobs"]) == r"a\xe8\xaa\x9e"
    assert "output_top_logprobs" not in info

    without = whole_of(new_shape(tokenizer), tokenizer, chunks(token_ids))["meta_info"]
    assert "output_token_logprobs" not in without


def test_incremental_logprobs(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("a語")
    shape = new_shape(tokenizer, num_likeliest=2, is_incremental=True)
    infos = [event["meta_info"] for event in events_of(shape, tokenizer, scored(token_ids))]
    entries = [each for info in infos for each in info["output_token_logprobs"]]
    assert entries == [(-each / 1e5, each, None) for each in token_ids]
    assert [info["output_token_logprobs_length"] for info in infos] == list(range(1, len(token_ids) + 1))
    assert all(len(info["output_top_logprobs"]) == 1 for info in infos)


def test_several_samples_have_ids_and_indices_of_their_own(tokenizer: Tokenizer) -> None:
    shape = new_shape(tokenizer, rid="mine", num_samples=2)
    sample = NativeSample(shape, 0, 1, tokenizer.text_stream())
    sample.take(TokenChunk([504], 5, 0, "length", index=1))
    event = sample.event()
    assert (event["index"], event["meta_info"]["id"]) == (1, "mine_1")


def test_one_answer_is_a_list_only_if_the_prompt_was_one(tokenizer: Tokenizer) -> None:
    answer: Json = {"text": "a"}
    assert new_shape(tokenizer).whole([answer]) == answer
    assert new_shape(tokenizer, is_list=True).whole([answer]) == [answer]
    assert new_shape(tokenizer, num_samples=2).whole([answer, answer]) == [answer, answer]
