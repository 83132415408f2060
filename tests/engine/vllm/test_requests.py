"""Requests on their way to vLLM, and its outputs on their way back, without vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from app import hashing
from app.engine.limits import Limits
from app.engine.relay.cached_hashes import CachedHashes
from app.engine.vllm.admission import Admission, check_samples
from app.engine.vllm.outputs import PromptUsage, SampleReader, VllmOutput
from app.engine.vllm.sampling import check_sampling, vllm_fields
from app.errors import InvalidRequestError, PromptTooLongError, RequestFailedError
from app.events.schema import AllBlocksCleared, BlockRemoved, BlockStored
from app.generation import GenerateRequest, SamplingParams, StructuredOutput, TokenLogprobs
from app.text.text_stream import TextStream

EOS = (2, 3)
LIMITS = Limits(max_model_len=64, num_blocks=100, block_size=4, vocab_size=200)


def text_stream(stop: Any, min_tokens: int, skip_special_tokens: bool = True) -> TextStream:
    """Tokens are letters."""
    return TextStream(lambda ids: "".join(map(chr, ids)), lambda token: False, stop, min_tokens)


ADMISSION = Admission(LIMITS, EOS, text_stream)


def fields(params: SamplingParams, **others: Any) -> dict[str, Any]:
    return vllm_fields(params, max_tokens=params.max_tokens, eos_token_ids=EOS, **others)


def test_every_field_has_its_name_in_vllm() -> None:
    params = SamplingParams(
        max_tokens=9,
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        seed=4,
        stop_token_ids=(8,),
        min_tokens=2,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.2,
        logit_bias={5: 1.0},
        logprobs=3,
        prompt_logprobs=2,
    )
    assert fields(params, num_earlier_tokens=1)["prompt_logprobs"] is None, "the client has had them"
    assert fields(params, index=2) == {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 6,
        "stop_token_ids": [2, 3, 8],
        "ignore_eos": False,
        "min_tokens": 2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.2,
        "logit_bias": {5: 1.0},
        "logprobs": 3,
        "prompt_logprobs": 2,
        "detokenize": False,
    }


def test_greedy_is_temperature_0_and_needs_no_more() -> None:
    for params in (SamplingParams(5, temperature=1e-6, seed=1), SamplingParams(5, top_k=1, top_p=0.5)):
        found = fields(params)
        assert found["temperature"] == 0
        assert not {"top_k", "top_p", "min_p", "seed"} & found.keys()


@pytest.mark.parametrize("seed", [-1, -(2**70), 2**63, 2**70])
def test_every_seed_fits_and_is_none_that_vllm_takes_for_no_seed(seed: int) -> None:
    found = [fields(SamplingParams(5, seed=seed), index=index)["seed"] for index in range(3)]
    assert all(0 <= each < 2**63 for each in found)
    assert len(set(found)) == 3


def test_the_end_of_sequence_ends_unless_it_is_ignored_or_a_structure_ends_with_it() -> None:
    ignoring = SamplingParams(5, ignore_eos=True, stop_token_ids=(9,))
    assert (fields(ignoring)["ignore_eos"], fields(ignoring)["stop_token_ids"]) == (True, [9])
    structure = StructuredOutput("choice", '["a", "b"]', "f")
    structured = fields(SamplingParams(5, ignore_eos=True, structured_output=structure))
    assert (structured["ignore_eos"], structured["stop_token_ids"]) == (False, [2, 3])
    assert structured["structured_outputs"] == {"choice": ["a", "b"]}


@pytest.mark.parametrize("temperature", [0.001, 2.1])
def test_a_temperature_that_vllm_would_change_is_refused(temperature: float) -> None:
    with pytest.raises(InvalidRequestError, match=rf"temperature = {temperature}; allowed with"):
        check_sampling(SamplingParams(5, temperature=temperature))
    check_sampling(SamplingParams(5, temperature=temperature, top_k=1))


def request(prompt: list[int], params: SamplingParams, **others: Any) -> GenerateRequest:
    return GenerateRequest("r", prompt, params, **others)


def test_samples_are_requests_of_their_own_that_share_the_prompts_full_blocks() -> None:
    samples = ADMISSION.samples(request([5] * 10, SamplingParams(99), n=3))
    assert [sample.request_id for sample in samples] == ["r-0", "r-1", "r-2"]
    assert [sample.num_private_tokens for sample in samples] == [None, 2, 2]
    assert {sample.fields["max_tokens"] for sample in samples} == {54}  # what the context leaves


def test_an_earlier_output_is_part_of_the_prompt() -> None:
    params = SamplingParams(20, min_tokens=4)
    earlier = {1: [7, 8, 9], 0: [6]}
    first, second = ADMISSION.samples(request([5] * 10, params, n=2, earlier_outputs=earlier))
    assert (first.token_ids, second.token_ids) == ([*[5] * 10, 6], [*[5] * 10, 7, 8, 9])
    assert (first.num_private_tokens, second.num_private_tokens) == (None, 5)
    assert (first.fields["max_tokens"], second.fields["max_tokens"]) == (19, 17)
    assert (first.fields["min_tokens"], second.fields["min_tokens"]) == (3, 1)


@pytest.mark.parametrize(
    ("params", "earlier", "message"),
    [
        (SamplingParams(9, seed=1), [5], "seed"),
        (SamplingParams(9, presence_penalty=1), [5], "presence_penalty"),
        (SamplingParams(9, frequency_penalty=1), [5], "frequency_penalty"),
        (SamplingParams(9, structured_output=StructuredOutput("regex", "a", "f")), [5], "structured output"),
        (SamplingParams(2), [5, 6], "2 tokens; the output has 2 at most"),
        (SamplingParams(9), [5, 3], "ended with token number 2"),
        (SamplingParams(9, stop_token_ids=(7,)), [7], "ended with token number 1"),
        (SamplingParams(9, stop=("ab",)), [97, 98], "ended with token number 2"),
        (SamplingParams(9), [200], "allowed: 0 to 199"),
    ],
)
def test_an_output_that_cant_go_on_is_refused(
    params: SamplingParams, earlier: list[int], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        ADMISSION.samples(request([5], params, earlier_outputs={0: earlier}))


def test_a_seed_is_no_obstacle_to_a_greedy_output() -> None:
    ADMISSION.samples(request([5], SamplingParams(9, temperature=0, seed=1), earlier_outputs={0: [5]}))


def test_what_never_fits_or_isnt_known_is_refused() -> None:
    with pytest.raises(PromptTooLongError):
        ADMISSION.samples(request([5] * 64, SamplingParams(1)))
    with pytest.raises(InvalidRequestError, match="logit_bias"):
        ADMISSION.samples(request([5], SamplingParams(1, logit_bias={200: 1.0})))
    with pytest.raises(InvalidRequestError, match="n = 5; allowed: 1 to 4"):
        check_samples(5, 4)


@dataclass
class Scored:
    logprob: float
    rank: int


def reader(num_logprobs: int | None = None, stop: tuple[str, ...] = ()) -> SampleReader:
    stream = text_stream(stop, 0) if stop else None
    return SampleReader(1, 10, num_logprobs, PromptUsage(), stream)


def test_a_chunk_has_the_likeliest_in_order_and_the_chosen_ones_own() -> None:
    places: list[Mapping[int, Scored]] = [
        {7: Scored(-5.0, 9), 5: Scored(-0.1, 1), 6: Scored(-2.0, 2)},
        {6: Scored(-2.0, 2), 5: Scored(-0.1, 1)},
    ]
    chunk = reader(2).read(VllmOutput([7, 6], places, None, 8))
    assert chunk.logprobs is not None
    assert [each.logprob for each in chunk.logprobs] == [-5.0, -2.0]
    assert [each.likeliest for each in chunk.logprobs] == [((5, -0.1), (6, -2.0))] * 2
    only_own = reader(0).read(VllmOutput([7], places[:1], None, 8)).logprobs
    assert only_own is not None
    assert (only_own[0].logprob, only_own[0].likeliest) == (-5.0, ())
    assert reader().read(VllmOutput([7], None, None, 8)).logprobs is None


def test_the_prompts_logprobs_come_with_the_first_chunk() -> None:
    places = [None, {7: Scored(-5.0, 9), 5: Scored(-0.1, 1)}, {6: Scored(-2.0, 1)}]
    reader = SampleReader(0, 3, None, PromptUsage(), None, [5, 7, 6], 1)
    first = reader.read(VllmOutput([8], None, None, 0, places))
    assert first.prompt_logprobs == [TokenLogprobs(-5.0, ((5, -0.1),)), TokenLogprobs(-2.0, ((6, -2.0),))]
    assert reader.read(VllmOutput([8], None, "length", 0)).prompt_logprobs is None


def test_a_stop_string_cuts_the_tokens_behind_it() -> None:
    found = reader(stop=("bc",))
    assert found.read(VllmOutput([97, 98], None, None, 0)).finish_reason is None
    last = found.read(VllmOutput([99, 100], None, None, 0))
    assert (last.token_ids, last.finish_reason) == ([99], "stop")


def test_what_the_first_output_found_in_the_cache_counts_for_all() -> None:
    usage = PromptUsage()
    first, second = (SampleReader(index, 10, None, usage, None) for index in (0, 1))
    assert first.read(VllmOutput([5], None, None, 4)).num_cached_tokens == 4
    assert second.read(VllmOutput([5], None, "length", 8)).num_cached_tokens == 4
    resumed = SampleReader(0, 10, None, PromptUsage(), None)
    assert resumed.read(VllmOutput([5], None, None, 12)).num_cached_tokens == 10


def test_a_sample_that_vllm_gives_up_fails() -> None:
    with pytest.raises(RequestFailedError, match="abort"):
        reader().read(VllmOutput([], None, "abort", 0))


def test_the_cached_part_of_a_prompt_is_its_first_blocks() -> None:
    cached, prompt = CachedHashes(4), list(range(16))
    hashes = hashing.wire_hashes(hashing.chain(prompt, 4))
    cached.apply([BlockStored(hashes, None, prompt, 4)])
    assert (len(cached), cached.num_cached_tokens(prompt, None)) == (4, 12)  # the last token is computed
    assert cached.num_cached_tokens([*prompt, 1], None) == 16
    assert cached.num_cached_tokens(prompt, "salt") == 0
    cached.apply([BlockRemoved(hashes[1:2])])
    assert cached.num_cached_tokens(prompt, None) == 4
    cached.apply([AllBlocksCleared()])
    assert cached.num_cached_tokens(prompt, None) == 0
