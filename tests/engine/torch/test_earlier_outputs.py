"""A request that another engine began goes on with the tokens that it would have got there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.engine.torch.engine import Engine
from app.engine.torch.outputs import RequestOutput
from app.errors import InvalidRequestError, QueueFullError
from app.generation import GenerateRequest, SamplingParams
from tests.support.engine.doubles import ANYTHING, OddThenEven, spelling
from tests.support.engine.runs import run, tokens_of
from tests.support.engine.tiny_engine import BLOCK, tiny_engine

PROMPT = list(range(10, 20))
EOS = 2
MAX_TOKENS = 14
NewEngine = Callable[..., Engine]


@pytest.fixture
def new_engine(tiny_llama_dir: Path) -> NewEngine:
    def make(**options: Any) -> Engine:
        hooks: dict[str, Any] = {"new_text_stream": spelling, "new_grammar": OddThenEven}
        return tiny_engine(tiny_llama_dir, **(hooks | options))

    return make


def params(**changes: Any) -> SamplingParams:
    defaults: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "ignore_eos": True}
    return SamplingParams(**(defaults | changes))


def request(wanted: SamplingParams, **fields: Any) -> GenerateRequest:
    return GenerateRequest("r", PROMPT, wanted, **fields)


def outputs_of(engine: Engine, asked: GenerateRequest) -> list[list[RequestOutput]]:
    """Each sample's outputs, by index; none for one that isn't computed."""
    engine.add_request(asked)
    outputs = run(engine)["r"]
    return [[output for output in outputs if output.index == index] for index in range(asked.n)]


CASES = {
    "greedy": params(),
    "seeded": params(temperature=1.0, seed=7),
    "seeded, narrowed and penalised": params(
        temperature=1.3,
        seed=11,
        top_k=100,
        top_p=0.95,
        min_p=0.001,
        presence_penalty=0.5,
        frequency_penalty=0.7,
        repetition_penalty=1.2,
        logit_bias={3: 2.0, 400: -5.0},
    ),
    "greedy by top_k with a seed": params(temperature=1.0, top_k=1, seed=3),
    "min_tokens": params(ignore_eos=False, logit_bias={EOS: 30.0}, min_tokens=9),
    "grammar": params(structured_output=ANYTHING, seed=5, temperature=1.0),
    "everything": params(
        temperature=1.1,
        seed=2,
        top_p=0.9,
        structured_output=ANYTHING,
        frequency_penalty=0.4,
        min_tokens=5,
        stop=("never",),
        logprobs=2,
    ),
}


@pytest.mark.parametrize("wanted", CASES.values(), ids=CASES)
def test_cut_at_any_token_the_rest_is_the_same(new_engine: NewEngine, wanted: SamplingParams) -> None:
    (undisturbed,) = outputs_of(new_engine(), request(wanted))
    whole = tokens_of(undisturbed)
    assert len(whole) > 8
    for num_earlier in range(len(whole)):
        earlier = {0: whole[:num_earlier]}
        (rest,) = outputs_of(new_engine(), request(wanted, earlier_outputs=earlier))
        assert tokens_of(rest) == whole[num_earlier:]
        assert rest[-1].finish_reason == undisturbed[-1].finish_reason
        assert {output.num_prompt_tokens for output in rest} == {len(PROMPT)}


def test_a_stop_string_that_began_in_the_earlier_output_ends_the_rest(new_engine: NewEngine) -> None:
    # Greedy, this model repeats itself.
    (free,) = outputs_of(new_engine(), request(params(seed=6, temperature=1.0)))
    whole = tokens_of(free)
    wanted = params(seed=6, temperature=1.0, stop=(f"{whole[5]} {whole[6]} {whole[7]}",))
    for num_earlier in range(8):
        earlier = {0: whole[:num_earlier]}
        (rest,) = outputs_of(new_engine(), request(wanted, earlier_outputs=earlier))
        assert tokens_of(rest) == whole[num_earlier:8]
        assert rest[-1].finish_reason == "stop"


def test_a_stop_string_before_min_tokens_is_not_found_in_the_earlier_output_either(
    new_engine: NewEngine,
) -> None:
    free = params(seed=6, temperature=1.0, min_tokens=6)
    whole = tokens_of(outputs_of(new_engine(), request(free))[0])
    wanted = params(seed=6, temperature=1.0, min_tokens=6, stop=(f"{whole[2]} {whole[3]}",))
    for num_earlier in range(MAX_TOKENS):
        earlier = {0: whole[:num_earlier]}
        (rest,) = outputs_of(new_engine(), request(wanted, earlier_outputs=earlier))
        assert tokens_of(rest) == whole[num_earlier:]


def test_logprobs_are_those_of_new_tokens_only(new_engine: NewEngine) -> None:
    wanted = params(logprobs=3, seed=4, temperature=0.9)
    (undisturbed,) = outputs_of(new_engine(), request(wanted))
    expected = [each for output in undisturbed for each in output.logprobs or []]
    for num_earlier in range(MAX_TOKENS):
        earlier = {0: tokens_of(undisturbed)[:num_earlier]}
        (rest,) = outputs_of(new_engine(), request(wanted, earlier_outputs=earlier))
        got = [each for output in rest for each in output.logprobs or []]
        assert len(got) == MAX_TOKENS - num_earlier
        for one, other in zip(got, expected[num_earlier:], strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [token for token, _ in one.likeliest] == [token for token, _ in other.likeliest]


@pytest.mark.parametrize("cuts", [(0, 0), (3, 0), (0, 5), (4, 4), (6, 11), (13, 1)])
def test_two_samples_go_on_each_from_its_own_place(new_engine: NewEngine, cuts: tuple[int, int]) -> None:
    wanted = params(temperature=1.2, seed=9, frequency_penalty=0.5)
    undisturbed = [tokens_of(outputs) for outputs in outputs_of(new_engine(), request(wanted, n=2))]
    earlier = {index: undisturbed[index][:cut] for index, cut in enumerate(cuts)}
    rest = outputs_of(new_engine(), request(wanted, n=2, earlier_outputs=earlier))
    assert [tokens_of(outputs) for outputs in rest] == [
        whole[cut:] for whole, cut in zip(undisturbed, cuts, strict=True)
    ]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("num_earlier", [0, 5])
def test_a_sample_that_has_ended_is_left_out(new_engine: NewEngine, index: int, num_earlier: int) -> None:
    wanted = params(temperature=1.2, seed=9)
    whole = tokens_of(outputs_of(new_engine(), request(wanted, n=3))[index])
    engine = new_engine()
    earlier = {index: whole[:num_earlier]}
    engine.add_request(request(wanted, n=3, earlier_outputs=earlier))
    stat = engine.load_stat(0)
    assert (stat.num_waiting_reqs, stat.num_waiting_uncached_tokens) == (1, len(PROMPT) + num_earlier)
    outputs = run(engine)["r"]
    assert {output.index for output in outputs} == {index}
    assert tokens_of(outputs) == whole[num_earlier:]


def test_in_small_chunks_beside_others_and_preempted_it_is_the_same(new_engine: NewEngine) -> None:
    wanted = params(max_tokens=20, temperature=1.2, seed=9)
    undisturbed = [tokens_of(outputs) for outputs in outputs_of(new_engine(), request(wanted, n=2))]
    earlier = {0: undisturbed[0][:3], 1: undisturbed[1][:9]}
    for options in ({"scheduler": {"max_batch_tokens": 3}}, {"num_blocks": 13}):
        engine = new_engine(**options)
        engine.add_request(GenerateRequest("other", [*PROMPT, 3], params(max_tokens=20)))
        rest = outputs_of(engine, request(wanted, n=2, earlier_outputs=earlier))
        assert [tokens_of(outputs) for outputs in rest] == [undisturbed[0][3:], undisturbed[1][9:]]


def test_cached_tokens_are_the_prompts_even_where_output_is_found_too(new_engine: NewEngine) -> None:
    engine = new_engine()
    (whole,) = outputs_of(engine, request(params()))
    earlier = {0: tokens_of(whole)[:12]}
    (rest,) = outputs_of(engine, request(params(), earlier_outputs=earlier))
    # 10 + 12 tokens are 5 full blocks, all of them cached; the prompt is 2 and a half of them.
    assert {output.num_cached_tokens for output in rest} == {len(PROMPT)}
    assert engine.load_stat(0).total_prefill_uncached_tokens == len(PROMPT) + (len(PROMPT) + 12) % BLOCK


@pytest.mark.parametrize(
    ("wanted", "earlier", "reason"),
    [
        (params(), {}, "earlier_outputs: no sample goes on; at least one is needed"),
        (params(), {2: [5]}, r"earlier_outputs\.2: no such sample; allowed: 0 to 1"),
        (params(), {-1: [5], 0: [5]}, r"earlier_outputs\.-1: no such sample; allowed: 0 to 1"),
        (params(), {0: [5, 512]}, r"earlier_outputs\.0 has tokens from 5 to 512; allowed: 0 to 511"),
        (params(), {1: [-1]}, r"earlier_outputs\.1 has tokens from -1 to -1; allowed: 0 to 511"),
        (
            params(max_tokens=3),
            {0: [5, 6, 7]},
            r"earlier_outputs\.0: 3 tokens; the output has 3 at most",
        ),
        (params(max_tokens=10**6), {0: [5] * 246}, "246 tokens; the output has 246 at most"),
        (params(stop_token_ids=(7,)), {0: [5, 6, 7]}, "the output ended with token number 3"),
        (params(ignore_eos=False), {0: [5, EOS, 7]}, "the output ended with token number 2"),
        (params(stop=("6 7",)), {1: [5, 6, 7]}, "the output ended with token number 3"),
        (params(structured_output=ANYTHING), {0: [5, 6] * 6}, "the output ended with token number 12"),
    ],
)
def test_what_does_not_go_on_here_is_refused(
    new_engine: NewEngine, wanted: SamplingParams, earlier: dict[int, list[int]], reason: str
) -> None:
    engine = new_engine()
    with pytest.raises(InvalidRequestError, match=reason):
        engine.add_request(request(wanted, n=2, earlier_outputs=earlier))
    assert not engine.has_work()
    engine.check_integrity()
    assert len(tokens_of(outputs_of(engine, request(params()))[0])) == MAX_TOKENS


def test_only_samples_that_go_on_need_a_place_in_the_queue(new_engine: NewEngine) -> None:
    engine = new_engine(scheduler={"max_waiting_requests": 3})
    engine.add_request(GenerateRequest("a", PROMPT, params(), n=2))
    with pytest.raises(QueueFullError):
        engine.add_request(request(params(), n=3, earlier_outputs={0: [5], 2: [6]}))
    engine.add_request(request(params(), n=3, earlier_outputs={2: [6]}))
    assert {output.index for output in run(engine)["r"]} == {2}
