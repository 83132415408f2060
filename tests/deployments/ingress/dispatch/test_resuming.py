"""Answers that change their rank in the middle are equal to undisturbed ones: with real engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from app import hashing
from app.deployments.messages import RankReplica
from app.errors import NoRankError, RankDiedError, RequestError
from app.generation import GenerateRequest, SamplingParams
from tests.support.engine.doubles import ANYTHING, OddThenEven, spelling
from tests.support.engine.mortal_ranks import FATES, Answer, Break, Fate, MortalRanks, mortal_ranks
from tests.support.engine.tiny_engine import BLOCK, tiny_engine

PROMPT = list(range(10, 20))
EOS = 2
MAX_TOKENS = 9
REQUEST_IDS = count()


@pytest.fixture
async def ranks(tiny_llama_dir: Path) -> AsyncIterator[MortalRanks]:
    hooks: dict[str, Any] = {"new_text_stream": spelling, "new_grammar": OddThenEven}
    engines = [tiny_engine(tiny_llama_dir, num_blocks=256, **hooks) for _ in range(3)]
    async with mortal_ranks(engines) as made:
        yield made


def params(**changes: Any) -> SamplingParams:
    defaults: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "ignore_eos": True}
    return SamplingParams(**(defaults | changes))


def request(wanted: SamplingParams, **fields: Any) -> GenerateRequest:
    return GenerateRequest(f"r{next(REQUEST_IDS)}", PROMPT, wanted, **fields)


def check_same(answer: Answer, undisturbed: Answer) -> None:
    """Token by token the same, every token once; logprobs as near as prefill and decode are in float32."""
    assert answer.tokens == undisturbed.tokens
    assert answer.finish_reasons == undisturbed.finish_reasons
    assert len(answer.prompt_numbers) == 1, "what is said of the prompt changes"
    assert {each[0] for each in answer.prompt_numbers} == {len(PROMPT)}
    assert answer.logprobs.keys() == undisturbed.logprobs.keys()
    for index, logprobs in answer.logprobs.items():
        for one, other in zip(logprobs, undisturbed.logprobs[index], strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [token_id for token_id, _ in one.likeliest] == [
                token_id for token_id, _ in other.likeliest
            ]


CASES: dict[str, SamplingParams] = {
    "greedy": params(),
    "seeded": params(temperature=1.0, seed=7),
    "penalties": params(
        temperature=1.3, seed=11, presence_penalty=0.5, frequency_penalty=0.7, repetition_penalty=1.2
    ),
    "narrowed": params(temperature=1.2, seed=3, top_k=50, top_p=0.9, min_p=0.001, logit_bias={3: 2.0}),
    "logprobs": params(logprobs=3, seed=4, temperature=0.9),
    "grammar": params(max_tokens=14, structured_output=ANYTHING, seed=5, temperature=1.0),
    "min_tokens, then its end": params(ignore_eos=False, logit_bias={EOS: 30.0}, min_tokens=6),
    "a token that stops it": params(stop_token_ids=tuple(range(256)), min_tokens=5, seed=1, temperature=1.0),
}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("case", CASES)
async def test_lost_at_any_token_the_answer_is_the_same(ranks: MortalRanks, case: str, n: int) -> None:
    wanted = CASES[case]
    undisturbed = await ranks.answer(request(wanted, n=n))
    assert undisturbed.num_chunks >= 6 * n
    for num_chunks in range(undisturbed.num_chunks):
        ranks.breaks = iter([Break(num_chunks, "gone")])
        check_same(await ranks.answer(request(wanted, n=n)), undisturbed)


async def test_a_stop_string_may_span_the_break(ranks: MortalRanks) -> None:
    free = params(seed=6, temperature=1.0)
    (whole,) = (await ranks.answer(request(free))).tokens.values()
    wanted = replace(free, stop=(f"{whole[3]} {whole[4]} {whole[5]}",))
    undisturbed = await ranks.answer(request(wanted))
    assert (undisturbed.tokens, undisturbed.finish_reasons) == ({0: whole[:6]}, {0: "stop"})
    for num_chunks in range(6):
        ranks.breaks = iter([Break(num_chunks, "gone")])
        check_same(await ranks.answer(request(wanted)), undisturbed)


@pytest.mark.parametrize("fate", [fate for fate in FATES if fate != "full"])
async def test_however_it_is_lost_the_answer_is_the_same(ranks: MortalRanks, fate: Fate) -> None:
    wanted = params(temperature=1.0, seed=7)
    undisturbed = await ranks.answer(request(wanted, n=2))
    for num_chunks in (0, 1, 8):
        ranks.breaks = iter([Break(num_chunks, fate)])
        check_same(await ranks.answer(request(wanted, n=2)), undisturbed)


async def test_lost_after_every_single_token_the_answer_is_the_same(ranks: MortalRanks) -> None:
    wanted = params(temperature=1.0, seed=7, frequency_penalty=0.5)
    undisturbed = await ranks.answer(request(wanted))
    ranks.breaks = iter([Break(1, "gone")] * (MAX_TOKENS - 1))
    asked = request(wanted)
    check_same(await ranks.answer(asked), undisturbed)
    results = [each.result for each in ranks.outcomes if each.request_id == asked.request_id]
    assert results == ["answering", "died"] * (MAX_TOKENS - 1) + ["answering", "finished"]
    choice_seqs = [each.choice_seq for each in ranks.outcomes if each.request_id == asked.request_id]
    assert len(set(choice_seqs)) == MAX_TOKENS


async def test_only_samples_that_go_on_are_resumed(ranks: MortalRanks) -> None:
    ending = tuple(range(0, 512, 3))
    wanted = params(temperature=1.0, seed=8, stop_token_ids=ending, max_tokens=20)
    undisturbed = await ranks.answer(request(wanted, n=4))
    lengths = {len(each) for each in undisturbed.tokens.values()}
    assert len(lengths) > 1, "all end at once"
    for num_chunks in range(undisturbed.num_chunks):
        ranks.breaks = iter([Break(num_chunks, "gone")])
        check_same(await ranks.answer(request(wanted, n=4)), undisturbed)


async def test_the_router_looks_for_prompt_and_output_under_the_tenants_salt(ranks: MortalRanks) -> None:
    undisturbed = await ranks.answer(request(params()))
    ranks.breaks = iter([Break(7, "gone")])
    asked = request(params(), cache_salt="salt", priority=3)
    await ranks.answer(asked)
    first, second = [each for each in ranks.routers.asked if each.request_id == asked.request_id]
    whole = PROMPT + undisturbed.tokens[0][:7]
    seed = hashing.seed("salt")
    assert second.block_hashes == hashing.wire_hashes(hashing.chain(whole, BLOCK, seed))
    assert second.block_hashes[: len(first.block_hashes)] == first.block_hashes
    assert (second.num_tokens, second.num_output_tokens) == (len(whole), 7)
    assert (first.num_tokens, first.num_output_tokens) == (len(PROMPT), 0)
    (failed,) = second.exclude
    assert isinstance(failed, RankReplica)
    assert [(each.cache_salt, each.priority) for each in ranks.calls[-2:]] == [("salt", 3)] * 2


async def test_without_a_seed_it_goes_on_with_other_numbers_but_to_its_end(ranks: MortalRanks) -> None:
    ranks.breaks = iter([Break(4, "gone")])
    answer = await ranks.answer(request(params(temperature=1.0), n=2))
    assert {index: len(tokens) for index, tokens in answer.tokens.items()} == {0: MAX_TOKENS, 1: MAX_TOKENS}


async def test_a_pinned_request_goes_on_at_its_rank_once_that_is_back(ranks: MortalRanks) -> None:
    undisturbed = await ranks.answer(request(params()))
    ranks.breaks = iter([Break(3, "gone")])
    asked = request(params())
    check_same(await ranks.answer(asked, pinned_rank=1), undisturbed)
    assert {each.rank for each in ranks.outcomes if each.request_id == asked.request_id} == {1}


async def test_a_rank_with_a_full_queue_is_no_end_in_the_middle_of_an_answer(ranks: MortalRanks) -> None:
    undisturbed = await ranks.answer(request(params()))
    ranks.breaks = iter([Break(3, "gone"), *[Break(0, "full")] * 5])
    check_same(await ranks.answer(request(params())), undisturbed)


async def test_what_is_planned_does_not_count_as_a_retry(tiny_llama_dir: Path) -> None:
    async with mortal_ranks([tiny_engine(tiny_llama_dir) for _ in range(2)], max_retries=0) as ranks:
        undisturbed = await ranks.answer(request(params()))
        ranks.breaks = iter([Break(0, "drained"), Break(2, "drained"), Break(3, "drained")])
        check_same(await ranks.answer(request(params())), undisturbed)
        ranks.breaks = iter([Break(0, "moved")])
        with pytest.raises(NoRankError, match=r"no further rank is tried \(ingress.max_retries = 0\)"):
            await ranks.answer(request(params()))
        ranks.breaks = iter([Break(1, "moved")])
        with pytest.raises(RankDiedError, match="while it answered, and the answer can't go on elsewhere"):
            await ranks.answer(request(params()))


async def test_an_engine_that_refuses_earlier_output_is_the_ranks_fault_and_says_why(
    tiny_llama_dir: Path,
) -> None:
    """The second engine knows fewer tokens, as if another model were served there."""
    async with mortal_ranks(
        [tiny_engine(tiny_llama_dir), tiny_engine(tiny_llama_dir, num_blocks=4)]
    ) as ranks:
        wanted = params(max_tokens=40)
        ranks.breaks = iter([Break(20, "gone")])
        with pytest.raises(RankDiedError) as caught:
            await ranks.answer(request(wanted))
        assert caught.value.status == 502
        assert caught.value.param is None
        assert "the answer can't go on elsewhere: earlier_outputs.0: 20 tokens" in caught.value.message


@pytest.mark.parametrize("seed", range(15))
async def test_breaks_at_random(ranks: MortalRanks, seed: int) -> None:
    """Several requests at once, each broken at random; some clients leave in the middle."""
    random = Random(seed)
    wanted = [(random.choice(list(CASES.values())), random.randint(1, 3)) for _ in range(4)]
    undisturbed = [await ranks.answer(request(each, n=n)) for each, n in wanted]
    ranks.breaks = iter(
        [
            Break(0, "full") if fate == "full" and number >= 4 else Break(random.randrange(8), fate)
            for number in range(random.randint(4, 16))
            for fate in [random.choice(FATES[:-1] if number < 4 else FATES)]
        ]
    )

    async def ask(wanted: SamplingParams, n: int, leaves_after_s: float | None) -> Answer | None:
        try:
            async with asyncio.timeout(leaves_after_s):
                return await ranks.answer(request(wanted, n=n))
        except (TimeoutError, RequestError):
            if leaves_after_s is None:
                raise
            return None

    answers = await asyncio.gather(
        *(ask(each, n, random.uniform(0.001, 0.03) if random.random() < 0.25 else None) for each, n in wanted)
    )
    for answer, expected in zip(answers, undisturbed, strict=True):
        if answer is not None:
            check_same(answer, expected)
    await ranks.check_idle()
