"""From logits to tokens: the likeliest one, or one by chance.

A sampled request draws one number per token from its own generator and takes the token at that place in
the cumulated probabilities. So a seed gives the same tokens whatever else is in the batch, and after a
preemption too.

A row goes through what its request changes in the logits, then either to the likeliest token or through
temperature, `min_p`, `top_k` and `top_p`, in this order as in vLLM, to a draw.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.torch.request import Request
from app.engine.torch.sampling.logit_changes import changed_logits
from app.engine.torch.sampling.logprobs import token_logprobs
from app.errors import RequestFailedError
from app.generation import SamplingParams, TokenLogprobs

# Most nuclei (top_p) are small: looking among this many first spares sorting the vocabulary.
FIRST_CANDIDATES = 512


@dataclass(frozen=True, slots=True)
class Sampled:
    """A request's next token, or the error why there is none."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


@torch.inference_mode()
def sample(logits: Tensor, requests: Sequence[Request], eos_token_ids: Collection[int]) -> list[Sampled]:
    """The next token of each request from its row of `logits` [n, vocab] in float32.

    `eos_token_ids` is what `min_tokens` forbids. An error is one row's: it leaves the others alone.
    """
    likeliest = logits.argmax(-1).tolist()
    is_finite = logits.isfinite().all(-1).tolist()
    sampled = []
    for row, request in enumerate(requests):
        if not is_finite[row]:
            sampled.append(Sampled(None, error="the model's logits are not finite"))
            continue
        try:
            token_id = _choose(logits[row], likeliest[row], request, eos_token_ids)
        except RequestFailedError as error:
            sampled.append(Sampled(None, error=error.message))
            continue
        num_likeliest = request.params.logprobs
        logprobs = None if num_likeliest is None else token_logprobs(logits[row], token_id, num_likeliest)
        sampled.append(Sampled(token_id, logprobs))
    return sampled


def _choose(logits: Tensor, likeliest: int, request: Request, eos_token_ids: Collection[int]) -> int:
    if request.grammar is not None or request.params.changes_logits:
        logits = changed_logits(logits, request, eos_token_ids)
        likeliest = int(logits.argmax())
    return likeliest if request.params.is_greedy else _draw(probabilities(logits, request.params), request)


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """The distribution [vocab] in float64 that `params` make of `logits` [vocab]; not for greedy ones.

    Temperature first, then those at least `min_p` as likely as the likeliest, of these the `top_k` likeliest,
    of these the fewest that reach `top_p`.
    """
    # The largest becomes 0, so that a small temperature can't overflow.
    scaled = (logits.double() - logits.max()) / params.temperature
    if params.min_p > 0:
        scaled = scaled.masked_fill(scaled < math.log(params.min_p), -math.inf)
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
    if first == top_k:
        log_total = values.logsumexp(0)
    else:
        log_total = (scaled if top_k == len(scaled) else scaled.topk(top_k).values).logsumexp(0)
    mass = (values - log_total).exp().cumsum(0)
    if first < top_k and mass[-1] < top_p:
        values, token_ids = scaled.topk(top_k)
        mass = (values - log_total).exp().cumsum(0)
    count = int(torch.searchsorted(mass, top_p)) + 1
    return values[:count], token_ids[:count]


def _draw(distribution: Tensor, request: Request) -> int:
    cumulated = distribution.cumsum(0)
    target = cumulated[-1] * request.draw()
    # The first token whose cumulated probability exceeds the target: never one of probability 0.
    return int(torch.searchsorted(cumulated, target, right=True))
