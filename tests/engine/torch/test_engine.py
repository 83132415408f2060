"""The engine through its public calls, over a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from app import hashing
from app.engine.torch.engine import Engine
from app.engine.torch.outputs import RequestOutput
from app.errors import (
    InvalidRequestError,
    PromptTooLongError,
    QueueFullError,
)
from app.events.schema import AllBlocksCleared, BlockStored
from app.generation import GenerateRequest, SamplingParams
from tests.support.engine.runs import run, tokens_of
from tests.support.engine.tiny_engine import BLOCK, tiny_engine

PROMPT = list(range(10, 20))
NewEngine = Callable[..., Engine]


class Spelling:
    """A text stream in which token 1 is "1 ", token 12 "12 " and so on."""

    def __init__(self, stop: Sequence[str], min_tokens: int, skip_special_tokens: bool) -> None:
        self._stop = stop
        self._text = ""
        self.matched: str | None = None

    def push(self, token_id: int) -> str:
        self._text += f"{token_id} "
        self.matched = next((stop for stop in self._stop if stop in self._text), None)
        return f"{token_id} "


@pytest.fixture
def new_engine(tiny_llama_dir: Path) -> NewEngine:
    def make(model_dir: Path = tiny_llama_dir, *, num_blocks: int = 64, **options: Any) -> Engine:
        scheduler = {key: options.pop(key) for key in list(options) if key.startswith("max_") and key != LEN}
        return tiny_engine(model_dir, num_blocks=num_blocks, scheduler=scheduler, **options)

    return make


LEN = "max_model_len"


def greedy(max_tokens: int = 8, **changes: Any) -> SamplingParams:
    return SamplingParams(max_tokens, **({"temperature": 0.0, "ignore_eos": True} | changes))


def complete(engine: Engine, prompt: list[int], params: SamplingParams) -> list[int]:
    engine.add_request(GenerateRequest("r", prompt, params))
    return tokens_of(run(engine)["r"])


def test_one_token_per_step_until_the_length(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.add_request(GenerateRequest("a", PROMPT, greedy(5)))
    outputs = run(engine)["a"]
    assert [len(output.new_token_ids) for output in outputs] == [1] * 5
    assert [output.finish_reason for output in outputs] == [None] * 4 + ["length"]
    assert {(output.num_prompt_tokens, output.num_cached_tokens) for output in outputs} == {(10, 0)}
    assert engine.num_free_blocks == engine.num_blocks
    assert not engine.has_work()


def test_a_step_without_work_does_nothing(new_engine: NewEngine) -> None:
    step = new_engine().step()
    assert (step.outputs, step.events) == ([], [])


def test_batches_chunks_caches_and_preemption_change_no_token(new_engine: NewEngine) -> None:
    prompts = {str(index): [*PROMPT, *range(30, 31 + 3 * index)] for index in range(6)}
    alone = {name: complete(new_engine(), prompt, greedy(20)) for name, prompt in prompts.items()}
    for options in ({}, {"max_batch_tokens": 3}, {"num_blocks": 12}, {"max_running_requests": 2}):
        engine = new_engine(**options)
        for _ in range(2):
            for name, prompt in prompts.items():
                engine.add_request(GenerateRequest(name, prompt, greedy(20)))
            assert {name: tokens_of(outputs) for name, outputs in run(engine).items()} == alone


def test_a_second_turn_finds_the_first_ones_answer(new_engine: NewEngine) -> None:
    engine = new_engine()
    answer = complete(engine, PROMPT, greedy(7))
    # 10 + 7 tokens, of which the last was never fed to the model: 4 full blocks.
    engine.add_request(GenerateRequest("second", [*PROMPT, *answer, 5, 6], greedy(1)))
    (output,) = run(engine)["second"]
    assert output.num_cached_tokens == 16


def test_a_whole_cached_prompt_still_computes_its_last_token(new_engine: NewEngine) -> None:
    engine = new_engine()
    prompt = list(range(8))
    first = complete(engine, prompt, greedy(3))
    engine.add_request(GenerateRequest("again", prompt, greedy(3)))
    outputs = run(engine)["again"]
    assert outputs[0].num_cached_tokens == 4
    assert tokens_of(outputs) == first


def test_events_say_what_is_cached(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.add_request(GenerateRequest("a", PROMPT, greedy(1)))
    events = engine.step().events
    names = [hashing.wire_hash(digest) for digest in hashing.chain(PROMPT, BLOCK)]
    assert events == [BlockStored(names, None, PROMPT[:8], BLOCK, medium="GPU")]
    assert [(block.hash, block.parent_hash) for block in engine.cached_blocks()] == [
        (names[0], None),
        (names[1], names[0]),
    ]


def test_a_salt_keeps_requests_apart(new_engine: NewEngine) -> None:
    engine = new_engine()
    for request_id, salt in (("a", "x"), ("b", "y"), ("c", "x")):
        engine.add_request(GenerateRequest(request_id, PROMPT, greedy(1), cache_salt=salt))
        (output,) = run(engine)[request_id]
        assert output.num_cached_tokens == (8 if request_id == "c" else 0)


def test_reset_while_a_request_runs_clears_once_and_changes_no_token(new_engine: NewEngine) -> None:
    expected = complete(new_engine(), PROMPT, greedy(12))
    engine = new_engine()
    engine.add_request(GenerateRequest("a", PROMPT, greedy(12)))
    outputs = engine.step().outputs
    engine.reset_cache()
    assert engine.drain_events() == [AllBlocksCleared()]
    while engine.has_work():
        step = engine.step()
        assert step.events == []
        outputs += step.outputs
        engine.check_integrity()
    assert tokens_of(outputs) == expected
    assert engine.cached_blocks() == []


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_abort_frees_at_once(num_steps: int, new_engine: NewEngine) -> None:
    engine = new_engine(max_batch_tokens=6)
    engine.add_request(GenerateRequest("a", PROMPT, greedy()))
    for _ in range(num_steps):
        engine.step()
    assert engine.abort("a")
    assert engine.num_free_blocks == engine.num_blocks
    assert not engine.abort("a")
    assert not engine.has_work()
    engine.check_integrity()
    engine.add_request(GenerateRequest("a", PROMPT, greedy(1)))
    assert len(run(engine)["a"]) == 1


def test_a_stop_token_ends_and_is_the_last(new_engine: NewEngine) -> None:
    tokens = complete(new_engine(), PROMPT, greedy(8))
    engine = new_engine()
    engine.add_request(GenerateRequest("a", PROMPT, greedy(8, stop_token_ids=(tokens[3],))))
    outputs = run(engine)["a"]
    assert tokens_of(outputs) == tokens[: tokens.index(tokens[3]) + 1]
    assert outputs[-1].finish_reason == "stop"


@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_the_models_end_of_sequence_ends_unless_ignored(
    file: str, as_list: bool, new_engine: NewEngine, new_tiny_llama: Callable[..., Path]
) -> None:
    tokens = complete(new_engine(), PROMPT, greedy(8))
    eos = tokens[2]
    model_dir = new_tiny_llama()
    config = json.loads((model_dir / file).read_text()) if file == "config.json" else {}
    config["eos_token_id"] = [511, eos] if as_list else eos
    (model_dir / file).write_text(json.dumps(config))
    engine = new_engine(model_dir)
    assert engine.eos_token_ids == ((511, eos) if as_list else (eos,))
    engine.add_request(GenerateRequest("a", PROMPT, greedy(8, ignore_eos=False)))
    outputs = run(engine)["a"]
    assert tokens_of(outputs) == tokens[: tokens.index(eos) + 1]
    assert outputs[-1].finish_reason == "stop"
    assert complete(engine, PROMPT, greedy(8)) == tokens


def test_the_tokenizers_end_of_sequence_ends_where_the_config_has_none(
    new_engine: NewEngine, new_tiny_llama: Callable[..., Path]
) -> None:
    model_dir = new_tiny_llama(eos_token_id=None)
    assert new_engine(model_dir).eos_token_ids == ()
    tokens = complete(new_engine(model_dir), PROMPT, greedy(8, ignore_eos=False))
    engine = new_engine(model_dir, eos_token_ids=tokens[2:3])
    expected = tokens[: tokens.index(tokens[2]) + 1]
    assert complete(engine, PROMPT, greedy(8, ignore_eos=False)) == expected


def test_a_stop_string_ends_with_the_token_that_completes_it(new_engine: NewEngine) -> None:
    tokens = complete(new_engine(), PROMPT, greedy(8))
    stop = f"{tokens[2]} {tokens[3]}"
    engine = new_engine(new_text_stream=Spelling)
    engine.add_request(GenerateRequest("a", PROMPT, greedy(8, stop=("never", stop))))
    outputs = run(engine)["a"]
    assert tokens_of(outputs) == tokens[:4]
    assert outputs[-1].finish_reason == "stop"


def test_a_seed_gives_the_same_tokens_alone_in_a_batch_and_preempted(new_engine: NewEngine) -> None:
    params = SamplingParams(15, seed=7, top_p=0.9, ignore_eos=True)
    alone = complete(new_engine(), PROMPT, params)
    for options in ({}, {"num_blocks": 9}):
        engine = new_engine(**options)
        engine.add_request(GenerateRequest("other", [*PROMPT, 3], SamplingParams(15, ignore_eos=True)))
        engine.add_request(GenerateRequest("seeded", PROMPT, params))
        assert tokens_of(run(engine)["seeded"]) == alone
    assert complete(new_engine(), PROMPT, SamplingParams(15, seed=8, ignore_eos=True)) != alone


def test_output_is_clipped_to_the_context(new_engine: NewEngine) -> None:
    engine = new_engine(max_model_len=14)
    engine.add_request(GenerateRequest("a", PROMPT, greedy(100)))
    outputs = run(engine)["a"]
    assert len(tokens_of(outputs)) == 4
    assert outputs[-1].finish_reason == "length"


def test_output_is_clipped_to_what_the_cache_can_hold(new_engine: NewEngine) -> None:
    engine = new_engine(num_blocks=3)
    # 12 tokens fit; the last output token's keys and values need no place.
    assert len(complete(engine, PROMPT, greedy(100))) == 3


def test_a_prompt_longer_than_the_context_is_refused_with_numbers(new_engine: NewEngine) -> None:
    engine = new_engine(max_model_len=10)
    with pytest.raises(PromptTooLongError, match="has 10 tokens; at most 9 leave room"):
        engine.add_request(GenerateRequest("a", PROMPT, greedy()))
    engine.add_request(GenerateRequest("a", PROMPT[:9], greedy()))


def test_a_prompt_larger_than_the_cache_is_refused_with_numbers(new_engine: NewEngine) -> None:
    engine = new_engine(num_blocks=2)
    with pytest.raises(PromptTooLongError, match=r"has 9 tokens; the KV cache holds 8 \(2 blocks of 4\)"):
        engine.add_request(GenerateRequest("a", PROMPT[:9], greedy()))
    engine.add_request(GenerateRequest("a", PROMPT[:8], greedy(5)))
    assert len(tokens_of(run(engine)["a"])) == 1


def test_what_can_not_be_understood_is_refused(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.add_request(GenerateRequest("a", PROMPT, greedy()))
    for request_id, prompt, params, message in (
        ("a", PROMPT, greedy(), "request_id = 'a': a live request has this id"),
        ("b", [], greedy(), "the prompt has no tokens"),
        ("b", [1, 512], greedy(), "tokens from 1 to 512; allowed: 0 to 511"),
        ("b", [-1, 5], greedy(), "tokens from -1 to 5; allowed: 0 to 511"),
        ("b", PROMPT, greedy(stop=("x",)), "stop: this engine has no tokenizer"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            engine.add_request(GenerateRequest(request_id, prompt, params))
    assert list(run(engine)) == ["a"]


def test_a_full_queue_says_when_to_come_back(new_engine: NewEngine) -> None:
    engine = new_engine(max_waiting_requests=2)
    for request_id in "ab":
        engine.add_request(GenerateRequest(request_id, PROMPT, greedy()))
    with pytest.raises(QueueFullError, match="2 requests wait; at most 2 may") as refused:
        engine.add_request(GenerateRequest("c", PROMPT, greedy()))
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 1
    engine.step()
    engine.add_request(GenerateRequest("c", PROMPT, greedy()))
    assert set(run(engine)) == {"a", "b", "c"}


def test_load_follows_requests_from_waiting_to_gone(new_engine: NewEngine) -> None:
    engine = new_engine(max_batch_tokens=6, max_running_requests=5)
    engine.add_request(GenerateRequest("a", PROMPT, greedy(2)))
    waiting = engine.load_stat(3)
    assert (waiting.dp_rank, waiting.num_running_reqs, waiting.num_waiting_reqs) == (3, 0, 1)
    assert (waiting.num_tokens, waiting.num_total_tokens, waiting.num_waiting_uncached_tokens) == (0, 10, 10)
    assert (waiting.max_total_num_tokens, waiting.max_running_requests) == (256, 5)
    engine.step()
    prefilling = engine.load_stat(3)
    assert (prefilling.num_running_reqs, prefilling.num_waiting_reqs) == (1, 0)
    assert (prefilling.num_tokens, prefilling.num_waiting_uncached_tokens) == (12, 4)
    assert prefilling.total_prefill_uncached_tokens == 6
    assert prefilling.total_prefill_busy_us > 0
    run(engine)
    done = engine.load_stat(3)
    assert (done.num_running_reqs, done.num_tokens, done.num_waiting_uncached_tokens) == (0, 0, 0)
    assert done.total_prefill_uncached_tokens == 10


def test_decoding_counts_as_no_prefill(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.add_request(GenerateRequest("a", PROMPT, greedy(4)))
    engine.step()
    before = engine.load_stat(0)
    run(engine)
    after = engine.load_stat(0)
    assert before.total_prefill_busy_us == after.total_prefill_busy_us
    assert after.total_prefill_uncached_tokens == 10


def test_a_prompt_of_one_token_counts_as_no_prefill_either(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.add_request(GenerateRequest("a", PROMPT[:1], greedy(1)))
    run(engine)
    load = engine.load_stat(0)
    assert (load.total_prefill_uncached_tokens, load.total_prefill_busy_us) == (0, 0)


def test_logits_that_are_not_finite_end_the_request_with_an_error(
    new_engine: NewEngine, new_tiny_llama: Callable[..., Path]
) -> None:
    model_dir = new_tiny_llama()
    weights = load_file(model_dir / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, model_dir / "model.safetensors")
    engine = new_engine(model_dir)
    engine.add_request(GenerateRequest("a", PROMPT, greedy()))
    (output,) = run(engine)["a"]
    assert (output.new_token_ids, output.finish_reason) == ([], "error")
    assert output.error == "the model's logits are not finite"
    assert engine.num_free_blocks == engine.num_blocks


def by_index(outputs: list[RequestOutput]) -> list[list[int]]:
    samples: dict[int, list[int]] = {}
    for output in outputs:
        samples.setdefault(output.index, []).extend(output.new_token_ids)
    return [samples[index] for index in range(len(samples))]


def test_samples_share_the_prompts_blocks_and_it_is_computed_once(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.add_request(GenerateRequest("a", PROMPT, SamplingParams(6, seed=3, ignore_eos=True), n=4))
    assert engine.load_stat(0).num_waiting_reqs == 4
    outputs = engine.step().outputs
    assert [output.index for output in outputs] == [0]
    outputs += engine.step().outputs
    # 2 shared blocks, and one of its own for each.
    assert engine.num_blocks - engine.num_free_blocks == 2 + 4
    assert engine.load_stat(0).total_prefill_uncached_tokens == 10 + 3 * 2
    outputs += run(engine)["a"]
    assert {(output.num_prompt_tokens, output.num_cached_tokens) for output in outputs} == {(10, 0)}
    reasons = [output.finish_reason for output in outputs]
    assert (reasons.count("length"), reasons.count(None), len(outputs)) == (4, 20, 24)
    assert len({tuple(tokens) for tokens in by_index(outputs)}) == 4


def test_a_seed_gives_the_same_samples_and_the_first_is_as_if_alone(new_engine: NewEngine) -> None:
    params = SamplingParams(15, seed=7, top_p=0.9, ignore_eos=True)
    engine = new_engine()
    engine.add_request(GenerateRequest("a", PROMPT, params, n=3))
    expected = by_index(run(engine)["a"])
    assert expected[0] == complete(new_engine(), PROMPT, params)
    for options in ({}, {"num_blocks": 8}, {"max_batch_tokens": 3}, {"max_running_requests": 2}):
        engine = new_engine(**options)
        engine.add_request(GenerateRequest("other", [*PROMPT, 3], SamplingParams(15, ignore_eos=True)))
        engine.add_request(GenerateRequest("a", PROMPT, params, n=3))
        assert by_index(run(engine)["a"]) == expected


def test_samples_end_one_by_one_and_the_id_is_free_after_the_last(new_engine: NewEngine) -> None:
    params = SamplingParams(12, seed=1, ignore_eos=True)
    engine = new_engine()
    engine.add_request(GenerateRequest("a", PROMPT, params, n=2))
    first, second = by_index(run(engine)["a"])
    stop = next(token for token in first if token not in second)
    engine.add_request(
        GenerateRequest("a", PROMPT, SamplingParams(12, seed=1, ignore_eos=True, stop_token_ids=(stop,)), n=2)
    )
    ended = {}
    while engine.has_work():
        with pytest.raises(InvalidRequestError, match="a live request has this id"):
            engine.add_request(GenerateRequest("a", PROMPT, params))
        for output in engine.step().outputs:
            if output.finish_reason is not None:
                ended[output.index] = output.finish_reason
        engine.check_integrity()
    assert ended == {0: "stop", 1: "length"}
    assert list(ended) == [0, 1]
    assert len(complete(engine, PROMPT, params)) == 12


@pytest.mark.parametrize("num_steps", [0, 1, 2, 4])
def test_abort_ends_all_samples(num_steps: int, new_engine: NewEngine) -> None:
    engine = new_engine(max_batch_tokens=8, max_running_requests=3)
    engine.add_request(GenerateRequest("a", PROMPT, greedy(), n=5))
    for _ in range(num_steps):
        engine.step()
    assert engine.abort("a")
    assert not engine.has_work()
    assert engine.num_free_blocks == engine.num_blocks
    assert not engine.abort("a")
    engine.check_integrity()


def test_every_sample_needs_a_place_in_the_queue(new_engine: NewEngine) -> None:
    engine = new_engine(max_waiting_requests=4)
    for n in (0, 5):
        with pytest.raises(InvalidRequestError, match=f"n = {n}; allowed: 1 to 4") as wrong:
            engine.add_request(GenerateRequest("a", PROMPT, greedy(), n=n))
        assert wrong.value.param == "n"
    engine.add_request(GenerateRequest("a", PROMPT, greedy(), n=3))
    with pytest.raises(QueueFullError, match="3 requests wait; at most 4 may"):
        engine.add_request(GenerateRequest("b", PROMPT, greedy(), n=2))
    engine.add_request(GenerateRequest("b", PROMPT, greedy()))
    assert set(run(engine)) == {"a", "b"}


def test_each_sample_has_its_own_text(new_engine: NewEngine) -> None:
    engine = new_engine()
    params = SamplingParams(12, seed=1, ignore_eos=True)
    engine.add_request(GenerateRequest("a", PROMPT, params, n=2))
    first, second = by_index(run(engine)["a"])
    # Only the two together would spell this.
    stop = f"{first[0]} {second[0]}"
    assert stop not in " ".join(map(str, first)) + " | " + " ".join(map(str, second))
    engine = new_engine(new_text_stream=Spelling)
    params = SamplingParams(12, seed=1, ignore_eos=True, stop=(stop, f"{second[1]} {second[2]} "))
    engine.add_request(GenerateRequest("a", PROMPT, params, n=2))
    assert by_index(run(engine)["a"]) == [first, second[:3]]


def test_a_lower_priority_number_is_answered_first(new_engine: NewEngine) -> None:
    engine = new_engine(max_running_requests=1)
    for request_id, priority in (("a", 5), ("b", 0), ("c", -2), ("d", 0)):
        engine.add_request(GenerateRequest(request_id, PROMPT, greedy(2), priority=priority))
    assert list(run(engine)) == ["c", "b", "d", "a"]


def test_two_requests_that_compute_the_same_blocks_at_once_end_with_one_copy(new_engine: NewEngine) -> None:
    """Both say the same, so both fill the same blocks with their answers, step by step."""
    engine = new_engine()
    for request_id in "ab":
        engine.add_request(GenerateRequest(request_id, PROMPT[:8], greedy(9)))
    for _ in range(8):
        engine.step()
    engine.check_integrity()
    # "b" is a step behind. Of 16 and 15 tokens all but the last are computed: 3 full blocks and a rest each.
    assert engine.num_cached_blocks == 3
    assert engine.num_blocks - engine.num_free_blocks == 3 + 1 + 1
