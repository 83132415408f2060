"""Logprobs of a prompt's tokens, beside transformers': with caches, chunks, preemptions, resumptions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.engine.torch.engine import Engine
from app.engine.torch.outputs import RequestOutput
from app.engine.torch.sampling import prompt_logprobs as scoring
from app.generation import GenerateRequest, SamplingParams, TokenLogprobs
from tests.support.engine.runs import run, tokens_of
from tests.support.engine.tiny_engine import BLOCK, tiny_engine

NUM_LIKELIEST = 3
SCORED = SamplingParams(2, temperature=0.0, ignore_eos=True, prompt_logprobs=NUM_LIKELIEST)
PLAIN = SamplingParams(2, temperature=0.0, ignore_eos=True)


def prompt(seed: int, length: int) -> list[int]:
    return [random.Random(seed).randrange(10, 250) for _ in range(length)]


@pytest.fixture(scope="module")
def expected(tiny_llama_dir: Path) -> Any:
    """Logprobs [len - 1, vocab] of the tokens after each place, as transformers finds them."""
    models: Any = AutoModelForCausalLM
    model = models.from_pretrained(tiny_llama_dir, dtype=torch.float32, attn_implementation="eager")

    def of(token_ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits = model(torch.tensor([list(token_ids)])).logits[0, :-1]
        logprobs: torch.Tensor = logits.float().log_softmax(-1)
        return logprobs

    return of


def check(found: Sequence[TokenLogprobs] | None, token_ids: Sequence[int], expected: Any) -> None:
    assert found is not None
    logprobs = expected(token_ids)
    assert len(found) == len(token_ids) - 1
    for place, each in enumerate(found):
        assert each.logprob == pytest.approx(float(logprobs[place, token_ids[place + 1]]), abs=1e-4)
        values = [value for _, value in each.likeliest]
        assert values == pytest.approx(logprobs[place].topk(NUM_LIKELIEST).values.tolist(), abs=1e-4)
        assert [float(logprobs[place, token]) for token, _ in each.likeliest] == pytest.approx(
            values, abs=1e-4
        )


def outputs_of(
    engine: Engine, requests: Mapping[str, tuple[list[int], SamplingParams]], **more: Any
) -> dict[str, list[RequestOutput]]:
    for request_id, (token_ids, params) in requests.items():
        engine.add_request(GenerateRequest(request_id, token_ids, params, **more))
    return run(engine)


def test_they_are_the_models_own_and_come_once(tiny_llama_dir: Path, expected: Any) -> None:
    engine = tiny_engine(tiny_llama_dir)
    given = {"a": (prompt(1, 23), SCORED), "b": (prompt(2, 9), PLAIN), "c": (prompt(3, 8), SCORED)}
    outputs = outputs_of(engine, given)
    for name in ("a", "c"):
        first, second = outputs[name]
        check(first.prompt_logprobs, given[name][0], expected)
        assert second.prompt_logprobs is None
    assert outputs["b"][0].prompt_logprobs is None
    (only,) = outputs_of(engine, {"one": ([5], SamplingParams(1, prompt_logprobs=0))})["one"]
    assert only.prompt_logprobs == []


def test_the_cache_stands_for_nothing_of_the_prompt_but_others_use_its_blocks(
    tiny_llama_dir: Path, expected: Any
) -> None:
    engine = tiny_engine(tiny_llama_dir)
    token_ids = prompt(1, 23)
    plain = outputs_of(engine, {"a": (token_ids, PLAIN)})["a"]
    scored = outputs_of(engine, {"b": (token_ids, SCORED)})["b"]
    check(scored[0].prompt_logprobs, token_ids, expected)
    assert [each.num_cached_tokens for each in scored] == [0, 0]
    assert tokens_of(scored) == tokens_of(plain)
    assert outputs_of(engine, {"c": (token_ids, PLAIN)})["c"][0].num_cached_tokens == 20


@pytest.mark.parametrize("budget", [5, 8, 64])
def test_chunks_and_samples(tiny_llama_dir: Path, expected: Any, budget: int) -> None:
    engine = tiny_engine(tiny_llama_dir, scheduler={"max_batch_tokens": budget})
    given = {str(place): (prompt(place, 15 + place), SCORED) for place in range(3)}
    outputs = outputs_of(engine, given, n=2)
    for name, (token_ids, _) in given.items():
        firsts = [each for each in outputs[name] if each.prompt_logprobs is not None]
        assert sorted(each.index for each in firsts) == [0, 1], "with the first token of each sample"
        for each in firsts:
            check(each.prompt_logprobs, token_ids, expected)


def test_a_preempted_prompt_goes_on_where_it_was(tiny_llama_dir: Path, expected: Any) -> None:
    """Small caches make the later requests give way, some in their prompts."""
    engine = tiny_engine(tiny_llama_dir, num_blocks=14, scheduler={"max_batch_tokens": 6})
    params = SamplingParams(12, temperature=0.0, ignore_eos=True, prompt_logprobs=NUM_LIKELIEST)
    given = {str(place): (prompt(place, 17), params) for place in range(4)}
    for name, outputs in outputs_of(engine, given).items():
        check(outputs[0].prompt_logprobs, given[name][0], expected)
        assert [each.prompt_logprobs is None for each in outputs[1:]] == [True] * 11


def test_what_goes_on_elsewhere_has_had_them(tiny_llama_dir: Path, expected: Any) -> None:
    engine = tiny_engine(tiny_llama_dir)
    token_ids = prompt(1, 2 * BLOCK + 1)
    outputs_of(engine, {"before": (token_ids, PLAIN)})
    engine.add_request(GenerateRequest("b", token_ids, SCORED, n=2, earlier_outputs={0: [11], 1: []}))
    found = {each.index: each.prompt_logprobs for each in run(engine)["b"] if each.prompt_logprobs}
    assert list(found) == [1], "the sample that has no output yet"
    check(found[1], token_ids, expected)


def test_few_logits_exist_at_once(
    tiny_llama_dir: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "MAX_NUMBERS", 600)
    token_ids = prompt(1, 23)
    outputs = outputs_of(tiny_engine(tiny_llama_dir), {"a": (token_ids, SCORED)})
    check(outputs["a"][0].prompt_logprobs, token_ids, expected)
