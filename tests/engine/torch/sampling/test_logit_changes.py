"""What requests change in the logits, against the definitions over Python's floats."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from app.engine.torch.request import Request
from app.engine.torch.sampling.logit_changes import changed_logits
from app.engine.torch.sampling.sampler import Sampler, token_logprobs
from app.errors import RequestFailedError
from app.generation import SamplingParams
from kernels.backends import load_kernels

VOCAB = 50
EOS = (2, 4)
SAMPLER = Sampler(load_kernels("torch").top_k_top_p, EOS)
PROMPT = [1, 5, 5, 9, 30]
OUTPUT = [7, 5, 7, 7, 40, 12]
LOGITS = 4 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(3))


class OnlyThese:
    """A grammar that allows the same tokens at every place, over a vocabulary of its own length."""

    is_finished = False

    def __init__(self, token_ids: set[int], length: int = VOCAB) -> None:
        self._mask = bytes(200 * (token_id in token_ids) for token_id in range(length))

    def allowed_tokens(self) -> bytes:
        return self._mask

    def accept(self, token_id: int) -> None:
        pass


def request(output: list[int] | None = None, grammar: OnlyThese | None = None, **params: Any) -> Request:
    """One that has got as far as `output`."""
    made = Request.new(
        "r", PROMPT, SamplingParams(max_tokens=20, **params), max_output_tokens=20, grammar=grammar
    )
    made.token_ids += OUTPUT if output is None else output
    return made


def naive(
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    logit_bias: dict[int, float] | None = None,
) -> list[float]:
    """Bias; repetition (CTRL's, over prompt and output); frequency and presence (OpenAI's, over output)."""
    changed = []
    for token_id, logit in enumerate(LOGITS.tolist()):
        logit += (logit_bias or {}).get(token_id, 0.0)
        if token_id in PROMPT + OUTPUT:
            logit = logit / repetition_penalty if logit > 0 else logit * repetition_penalty
        count = OUTPUT.count(token_id)
        changed.append(logit - count * frequency_penalty - (count > 0) * presence_penalty)
    return changed


@pytest.mark.parametrize(
    "params",
    [
        {"presence_penalty": 1.5},
        {"presence_penalty": -2.0},
        {"frequency_penalty": 0.3},
        {"frequency_penalty": -1.25},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"logit_bias": {5: 3.5, 49: -100.0, 0: 100.0}},
        {
            "presence_penalty": 0.4,
            "frequency_penalty": 1.1,
            "repetition_penalty": 1.8,
            "logit_bias": {7: -6.0, 5: 2.0},
        },
    ],
)
def test_logits_are_those_of_the_definition(params: dict[str, Any]) -> None:
    got = changed_logits(LOGITS, request(**params), EOS)
    torch.testing.assert_close(
        got, torch.tensor(naive(**params), dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_the_models_logits_stay_as_they_are() -> None:
    before = LOGITS.clone()
    changed_logits(LOGITS, request(min_tokens=10, logit_bias={3: 5.0}, repetition_penalty=2.0), EOS)
    assert torch.equal(LOGITS, before)


def test_no_ending_comes_before_min_tokens() -> None:
    endings = [2, 3, 4]
    for num_output in range(6):
        waiting = request(OUTPUT[:num_output], min_tokens=4, stop_token_ids=(3, VOCAB + 7))
        changed = changed_logits(LOGITS, waiting, EOS)
        assert [changed[token_id] == -math.inf for token_id in endings] == [num_output < 4] * 3
        others = [token_id for token_id in range(VOCAB) if token_id not in endings]
        assert torch.equal(changed[others], LOGITS.double()[others])


@pytest.mark.parametrize("length", [VOCAB - 10, VOCAB, VOCAB + 14])
def test_a_grammar_leaves_what_it_allows_and_the_model_knows(length: int) -> None:
    allowed = {3, 39, 45, VOCAB + 3}
    changed = changed_logits(LOGITS, request(grammar=OnlyThese(allowed, length), repetition_penalty=1.2), EOS)
    left = (changed > -math.inf).nonzero().flatten().tolist()
    assert left == [token_id for token_id in sorted(allowed) if token_id < min(length, VOCAB)]


def test_a_bias_does_not_bring_back_what_the_grammar_forbids() -> None:
    wanted = request(grammar=OnlyThese({3, 4}), logit_bias={9: 100.0}, temperature=0.0)
    assert SAMPLER.sample(LOGITS[None], [wanted])[0].token_id in (3, 4)
    against = request(grammar=OnlyThese({3}), logit_bias={3: -100.0}, temperature=0.0)
    assert SAMPLER.sample(LOGITS[None], [against])[0].token_id == 3


@pytest.mark.parametrize(
    ("grammar", "params"),
    [(OnlyThese(set()), {}), (OnlyThese({2, 3}), {"min_tokens": 10, "stop_token_ids": (3,)})],
)
def test_where_no_token_is_left_only_that_request_fails(grammar: OnlyThese, params: dict[str, Any]) -> None:
    stuck = request(grammar=grammar, **params)
    with pytest.raises(RequestFailedError, match="no token may follow"):
        changed_logits(LOGITS, stuck, EOS)
    other = request(temperature=0.0)
    first, second = SAMPLER.sample(LOGITS.expand(2, -1), [stuck, other])
    assert (first.token_id, second.token_id) == (None, int(LOGITS.argmax()))
    assert first.error is not None
    assert "after 6 output tokens no token may follow" in first.error


def test_a_greedy_choice_is_the_likeliest_after_the_changes() -> None:
    best = int(LOGITS.argmax())
    chosen = SAMPLER.sample(LOGITS[None], [request(temperature=0.0, logit_bias={best: -50.0})])[0].token_id
    assert chosen == int(LOGITS.topk(2).indices[1])


def test_logprobs_are_those_of_the_models_own_distribution() -> None:
    weights = [math.exp(logit) for logit in LOGITS.tolist()]
    expected = [math.log(weight / sum(weights)) for weight in weights]
    order = sorted(range(VOCAB), key=lambda token_id: -expected[token_id])
    for num_likeliest in (0, 1, 7, 20):
        got = token_logprobs(LOGITS, 13, num_likeliest)
        assert got.logprob == pytest.approx(expected[13], abs=1e-5)
        assert [token_id for token_id, _ in got.likeliest] == order[:num_likeliest]
        values = [expected[token_id] for token_id in order[:num_likeliest]]
        assert [logprob for _, logprob in got.likeliest] == pytest.approx(values, abs=1e-5)


def test_what_changes_the_choice_does_not_change_the_logprobs() -> None:
    shaped = request(temperature=0.3, seed=1, logprobs=3, logit_bias={13: 100.0}, repetition_penalty=2.0)
    sampled = SAMPLER.sample(LOGITS[None], [shaped])[0]
    assert sampled.token_id == 13
    assert sampled.logprobs == token_logprobs(LOGITS, 13, 3)
    assert SAMPLER.sample(LOGITS[None], [request(temperature=0.0)])[0].logprobs is None
