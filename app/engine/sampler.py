"""From logits to tokens: the likeliest one, or one by chance.

A sampled request draws one number per token from its own generator and takes the token at that place in
the cumulated probabilities. So a seed gives the same tokens whatever else is in the batch, and after a
preemption too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.engine.request import Request, SamplingParams

# Most nuclei (top_p) are small: looking among this many first spares sorting the vocabulary.
FIRST_CANDIDATES = 512
# Numbers below 1 with this many bits stay below 1 when multiplied and rounded in float64.
DRAW_BITS = 48


@torch.inference_mode()
def sample(logits: Tensor, requests: Sequence[Request]) -> list[int | None]:
    """The next token of each request from its row of `logits` [n, vocab] in float32.

    None where a row is not finite, so nothing can be said.
    """
    tokens: list[int | None] = logits.argmax(-1).tolist()
    is_finite = logits.isfinite().all(-1).tolist()
    for row, request in enumerate(requests):
        if not is_finite[row]:
            tokens[row] = None
        elif not request.params.is_greedy:
            tokens[row] = _draw(probabilities(logits[row], request.params), request)
    return tokens


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """The distribution [vocab] in float64 that `params` make of `logits` [vocab]; not for greedy ones.

    Temperature first, then the `top_k` likeliest, then of these the fewest that reach `top_p`.
    """
    # The largest becomes 0, so that a small temperature can't overflow.
    scaled = (logits.double() - logits.max()) / params.temperature
    top_k = min(params.top_k or len(logits), len(logits))
    if top_k == len(logits) and params.top_p == 1:
        return torch.softmax(scaled, -1)
    values, token_ids = _nucleus(scaled, top_k, params.top_p)
    return torch.zeros_like(scaled).scatter_(0, token_ids, torch.softmax(values, -1))


def _nucleus(scaled: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The logits and ids of the tokens that remain, likeliest first."""
    first = min(top_k, FIRST_CANDIDATES)
    values, token_ids = scaled.topk(first)
    # Probabilities among the top_k; where that is not the candidates, among all.
    log_total = values.logsumexp(0) if first == top_k else scaled.topk(top_k).values.logsumexp(0)
    mass = (values - log_total).exp().cumsum(0)
    if first < top_k and mass[-1] < top_p:
        values, token_ids = scaled.topk(top_k)
        mass = (values - log_total).exp().cumsum(0)
    count = int(torch.searchsorted(mass, top_p)) + 1
    return values[:count], token_ids[:count]


def _draw(distribution: Tensor, request: Request) -> int:
    cumulated = distribution.cumsum(0)
    target = cumulated[-1] * (request.random.getrandbits(DRAW_BITS) / 2**DRAW_BITS)
    # The first token whose cumulated probability exceeds the target: never one of probability 0.
    return int(torch.searchsorted(cumulated, target, right=True))
