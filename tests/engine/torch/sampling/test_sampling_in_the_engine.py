"""What requests ask of sampling, through the engine's public calls over a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.engine.torch.engine import Engine
from app.engine.torch.outputs import RequestOutput
from app.errors import InvalidRequestError
from app.generation import GenerateRequest, SamplingParams, StructuredOutput
from app.settings.engine import EngineConfig
from tests.support.engine.doubles import ANYTHING, OddThenEven, spelling
from tests.support.engine.runs import run, tokens_of
from tests.support.engine.tiny_engine import tiny_engine

PROMPT = list(range(10, 20))
EOS = 2
NewEngine = Callable[..., Engine]


@pytest.fixture
def new_engine(tiny_llama_dir: Path) -> NewEngine:
    def make(num_blocks: int = 64, max_batch_tokens: int = 64, **options: Any) -> Engine:
        scheduler = {"max_batch_tokens": max_batch_tokens}
        hooks: dict[str, Any] = {"new_text_stream": spelling, "new_grammar": OddThenEven}
        return tiny_engine(tiny_llama_dir, num_blocks=num_blocks, scheduler=scheduler, **(hooks | options))

    return make


def answer(engine: Engine, **params: Any) -> list[RequestOutput]:
    engine.add_request(
        GenerateRequest("r", PROMPT, SamplingParams(**({"max_tokens": 20, "temperature": 0.0} | params)))
    )
    return run(engine)["r"]


EVERYTHING = SamplingParams(
    20,
    temperature=1.3,
    top_k=100,
    top_p=0.95,
    min_p=0.001,
    seed=11,
    stop=("never",),
    ignore_eos=True,
    min_tokens=5,
    presence_penalty=0.5,
    frequency_penalty=0.7,
    repetition_penalty=1.2,
    logit_bias={3: 2.0, 400: -5.0},
    logprobs=2,
)


@pytest.mark.parametrize("structured_output", [None, ANYTHING], ids=["free", "structured"])
def test_a_seed_gives_the_same_with_every_feature_on_in_any_company(
    new_engine: NewEngine, structured_output: StructuredOutput | None
) -> None:
    fields = {name: getattr(EVERYTHING, name) for name in SamplingParams.__slots__}
    params = SamplingParams(**fields | {"structured_output": structured_output})
    company = [
        SamplingParams(20, seed=1, ignore_eos=True, frequency_penalty=1.0),
        SamplingParams(20, temperature=0.0, ignore_eos=True, logprobs=1),
        SamplingParams(20, seed=2, min_p=0.2, structured_output=ANYTHING),
    ]
    alone = new_engine()
    alone.add_request(GenerateRequest("seeded", PROMPT, params))
    expected = run(alone)["seeded"]
    num_preempted = 0
    for options in ({}, {"num_blocks": 15}, {"max_batch_tokens": 6}):
        engine = new_engine(**options)
        for index, other in enumerate(company):
            engine.add_request(GenerateRequest(str(index), [*PROMPT, index], other))
        engine.add_request(GenerateRequest("seeded", PROMPT, params))
        outputs: list[RequestOutput] = []
        num_waiting = 4
        while engine.has_work():
            outputs += [output for output in engine.step().outputs if output.request_id == "seeded"]
            num_preempted += max(0, engine.load_stat(0).num_waiting_reqs - num_waiting)
            num_waiting = engine.load_stat(0).num_waiting_reqs
        assert tokens_of(outputs) == tokens_of(expected)
        assert outputs[-1].finish_reason == expected[-1].finish_reason
    assert num_preempted > 0
    assert len(tokens_of(expected)) == (20 if structured_output is None else 12)


def test_logprobs_come_with_every_token_that_asks_for_them(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.add_request(
        GenerateRequest("with", PROMPT, SamplingParams(6, temperature=0.0, ignore_eos=True, logprobs=3))
    )
    engine.add_request(GenerateRequest("own", PROMPT, SamplingParams(6, seed=1, ignore_eos=True, logprobs=0)))
    engine.add_request(
        GenerateRequest("without", PROMPT, SamplingParams(6, temperature=0.0, ignore_eos=True))
    )
    outputs = run(engine)
    for output in outputs["with"]:
        (logprobs,) = output.logprobs or []
        assert logprobs.likeliest[0] == (output.new_token_ids[0], logprobs.logprob)
        assert len(logprobs.likeliest) == 3
    assert [len(output.logprobs or []) for output in outputs["own"]] == [1] * 6
    assert all(output.logprobs and output.logprobs[0].likeliest == () for output in outputs["own"])
    assert all(output.logprobs is None for output in outputs["without"])


def test_min_tokens_put_off_every_kind_of_ending(new_engine: NewEngine) -> None:
    free = tokens_of(answer(new_engine(), ignore_eos=True))
    wants_to_end = {EOS: 30.0}
    assert len(tokens_of(answer(new_engine(), logit_bias=wants_to_end))) == 1
    outputs = answer(new_engine(), logit_bias=wants_to_end, min_tokens=7)
    assert tokens_of(outputs)[:7] == free[:7]
    assert (tokens_of(outputs)[7:], outputs[-1].finish_reason) == ([EOS], "stop")
    outputs = answer(new_engine(), logit_bias={99: 30.0}, min_tokens=7, stop_token_ids=(99,))
    assert (tokens_of(outputs)[7:], outputs[-1].finish_reason) == ([99], "stop")


def test_stop_strings_are_looked_for_behind_min_tokens_only(new_engine: NewEngine) -> None:
    outputs = answer(new_engine(), logit_bias={99: 50.0}, stop=("99 99",), ignore_eos=True)
    assert len(tokens_of(outputs)) == 2
    outputs = answer(new_engine(), logit_bias={99: 50.0}, stop=("99 99",), ignore_eos=True, min_tokens=5)
    assert (len(tokens_of(outputs)), outputs[-1].finish_reason) == (7, "stop")


def test_a_repetition_penalty_counts_prompt_and_output_alike(new_engine: NewEngine) -> None:
    engine = new_engine()
    fields: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "repetition_penalty": 1.5}
    tokens = tokens_of(answer(engine, **fields))
    assert tokens != tokens_of(answer(engine, ignore_eos=True))
    for index, token in enumerate(tokens):
        engine.add_request(GenerateRequest("r", [*PROMPT, *tokens[:index]], SamplingParams(1, **fields)))
        assert tokens_of(run(engine)["r"]) == [token]


def test_a_structured_output_ends_when_nothing_can_follow(new_engine: NewEngine) -> None:
    outputs = answer(new_engine(), structured_output=ANYTHING)
    tokens = tokens_of(outputs)
    assert [token % 2 for token in tokens] == [1, 0] * 6
    assert outputs[-1].finish_reason == "stop"
    assert answer(new_engine(), structured_output=ANYTHING, max_tokens=5)[-1].finish_reason == "length"
    # min_tokens can't ask for more than there is.
    assert len(tokens_of(answer(new_engine(), structured_output=ANYTHING, min_tokens=15))) == 12


def test_a_request_that_can_not_go_on_ends_alone_and_frees_its_blocks(new_engine: NewEngine) -> None:
    engine = new_engine()
    only_odd = tuple(range(0, 512, 2))
    stuck = SamplingParams(
        20, temperature=0.0, structured_output=ANYTHING, min_tokens=5, stop_token_ids=only_odd
    )
    engine.add_request(GenerateRequest("stuck", PROMPT, stuck))
    engine.add_request(GenerateRequest("other", PROMPT, SamplingParams(20, temperature=0.0, ignore_eos=True)))
    outputs = run(engine)
    assert outputs["stuck"][-1].finish_reason == "error"
    assert "after 1 output tokens no token may follow" in (outputs["stuck"][-1].error or "")
    assert len(tokens_of(outputs["other"])) == 20
    assert engine.num_free_blocks == engine.num_blocks


def test_what_the_engine_can_not_do_is_refused(new_engine: NewEngine, tiny_llama_dir: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"logit_bias has tokens from 5 to 512; allowed: 0 to 511"):
        new_engine().add_request(
            GenerateRequest("r", PROMPT, SamplingParams(1, logit_bias={5: 1.0, 512: 1.0}))
        )
    bare = Engine.load(tiny_llama_dir, EngineConfig(), device="cpu", dtype="float32")
    params = SamplingParams(1, structured_output=ANYTHING)
    refusals: list[Callable[[], None]] = [
        lambda: bare.prepare(params),
        lambda: bare.add_request(GenerateRequest("r", PROMPT, params)),
    ]
    for refuse in refusals:
        with pytest.raises(InvalidRequestError, match="no tokenizer") as refused:
            refuse()
        assert refused.value.param == "structured_outputs.grammar"
    bare.prepare(SamplingParams(1))
    assert not bare.has_work()
