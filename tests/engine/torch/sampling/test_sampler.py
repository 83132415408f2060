from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from app.engine.torch.request import Request
from app.engine.torch.sampling.sampler import Sampled, Sampler, token_weights
from app.generation import SamplingParams
from kernels.backends import load_kernels

TOP_K_TOP_P = load_kernels("torch").top_k_top_p
SAMPLER = Sampler(TOP_K_TOP_P, eos_token_ids=(2,))


def request(**params: Any) -> Request:
    return Request.new("r", [1], SamplingParams(max_tokens=10, **params), max_output_tokens=10)


def next_tokens(logits: Tensor, requests: list[Request]) -> list[int | None]:
    return [each.token_id for each in SAMPLER.sample(logits, requests)]


def probabilities(logits: Tensor, *params: SamplingParams) -> Tensor:
    """The distributions that the sampler draws from, for the same logits [vocab]: [params, vocab]."""
    weights = token_weights(logits.double().repeat(len(params), 1), params, TOP_K_TOP_P)
    return weights / weights.sum(-1, keepdim=True)


def naive(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> list[float]:
    """The distribution by its definition, over Python floats."""
    weights = [math.exp(logit / temperature) for logit in logits.tolist()]
    weights = [weight if weight >= min_p * max(weights) else 0.0 for weight in weights]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    kept = order[: top_k or len(order)]
    total = sum(weights[token] for token in kept)
    mass = 0.0
    nucleus = []
    for token in kept:
        if mass >= top_p:
            break
        nucleus.append(token)
        mass += weights[token] / total
    total = sum(weights[token] for token in nucleus)
    return [weights[token] / total if token in nucleus else 0.0 for token in range(len(weights))]


WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 5.0},
    {"top_k": 3},
    {"top_k": 5000},
    {"top_p": 0.4},
    {"top_p": 1e-9},
    {"temperature": 2.0, "top_k": 40, "top_p": 0.9},
    {"temperature": 20.0, "top_p": 0.95},
    {"temperature": 20.0, "top_k": 1500, "top_p": 0.95},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.3, "temperature": 4.0, "top_k": 900, "top_p": 0.8},
    {"min_p": 0.001, "temperature": 0.7, "top_k": 5},
]
LOGITS = 3 * torch.randn(2000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("params", WAYS)
def test_probabilities_are_those_of_the_definition(params: dict[str, Any]) -> None:
    (got,) = probabilities(LOGITS, SamplingParams(max_tokens=1, **params))
    expected = torch.tensor(naive(LOGITS, **params), dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-15)


def test_rows_of_every_way_in_one_batch_are_as_if_each_were_alone() -> None:
    every = [SamplingParams(max_tokens=1, **params) for params in WAYS]
    together = probabilities(LOGITS, *every)
    for got, params in zip(together, WAYS, strict=True):
        expected = torch.tensor(naive(LOGITS, **params), dtype=torch.float64)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-15)


def test_drawn_tokens_are_the_same_in_a_batch_of_every_way() -> None:
    """The batch is larger than what is worked at in one go."""
    logits = 3 * torch.randn(5 * len(WAYS), 20_000, generator=torch.Generator().manual_seed(1))
    params = [way | {"seed": index} for index, way in enumerate(5 * WAYS)]
    alone, together = ([request(**each) for each in params] for _ in range(2))
    for _ in range(2):
        expected = [next_tokens(row.unsqueeze(0), [one])[0] for row, one in zip(logits, alone, strict=True)]
        assert next_tokens(logits, together) == expected


def test_a_tiny_temperature_does_not_overflow() -> None:
    logits = torch.tensor([1e4, 3e4, -1e4])
    (distribution,) = probabilities(logits, SamplingParams(max_tokens=1, temperature=2e-5))
    assert distribution.tolist() == [0, 1, 0]


def test_drawn_tokens_follow_the_cumulated_probabilities() -> None:
    """For every number that is drawn, the token is the one whose interval holds it."""
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    drawn, mirror = request(seed=5, top_k=3), request(seed=5, top_k=3)
    borders = probabilities(logits, drawn.params)[0].cumsum(0).tolist()
    for _ in range(200):
        (token,) = next_tokens(logits.unsqueeze(0), [drawn])
        place = mirror.random.getrandbits(48) / 2**48
        assert token == next(index for index, border in enumerate(borders) if place < border)


def test_a_token_outside_top_k_is_never_drawn() -> None:
    logits = torch.zeros(4)
    logits[2] = -1.0
    one = request(seed=1, top_k=3)
    assert {next_tokens(logits.unsqueeze(0), [one])[0] for _ in range(100)} == {0, 1, 3}


def test_a_seed_gives_the_same_tokens_in_any_company() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    alone, in_company = request(seed=3), request(seed=3)
    company = [request(temperature=0.0), in_company, request(seed=4, top_p=0.5)]
    rows = logits[[0, 2, 1]]
    for _ in range(20):
        assert next_tokens(logits[2:], [alone])[0] == next_tokens(rows, company)[1]


def test_of_equal_logits_a_seed_gives_the_same_token_whatever_the_company_asks() -> None:
    """Logits that were computed in 16 bits are equal by the dozen, and other requests look at more tokens."""
    logits = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    ways: list[dict[str, Any]] = [
        {"top_k": 20},
        {"top_k": 100, "top_p": 0.9},
        {"top_p": 0.9, "temperature": 2.0},
    ]
    mates: list[dict[str, Any]] = [{"top_k": 190}, {"top_k": 2000}, {"top_p": 0.99, "temperature": 1.5}]
    for way in ways:
        for mate in mates:
            for seed in range(20):
                (alone,) = next_tokens(logits[:1], [request(seed=seed, **way)])
                both = next_tokens(logits, [request(seed=seed, **way), request(**mate)])
                assert alone == both[0], (way, mate, seed)


def test_a_top_k_beyond_every_vocabulary_is_off() -> None:
    logits = torch.zeros(2, 50)
    first, second = next_tokens(logits, [request(seed=1, top_k=2**70), request(seed=1)])
    assert first == second


def test_without_a_seed_two_requests_differ() -> None:
    logits = torch.zeros(2, 1000)
    first, second = request(), request()
    drawn = [next_tokens(logits, [first, second]) for _ in range(10)]
    assert [pair[0] for pair in drawn] != [pair[1] for pair in drawn]


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 1e-6}, {"top_k": 1, "seed": 1}])
def test_greedy_takes_the_likeliest_and_of_equals_the_first(params: dict[str, float]) -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    assert next_tokens(logits, [request(**params)]) == [1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_gives_no_token_and_leaves_others_alone(bad: float) -> None:
    logits = torch.tensor([[0.0, bad], [0.0, 1.0]])
    bad_row, good_row = SAMPLER.sample(logits, [request(), request(temperature=0.0)])
    assert bad_row == Sampled(None, error="the model's logits are not finite")
    assert good_row == Sampled(1)
