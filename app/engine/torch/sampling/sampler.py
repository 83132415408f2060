"""From logits to tokens: the likeliest one, or one by chance.

A sampled request draws one number per token from its own generator and takes the token at that place in
the cumulated probabilities. So a seed gives the same tokens in any batch, and after a preemption too.

A row goes through what its request changes in the logits, then either to the likeliest token or through
temperature, `min_p`, `top_k` and `top_p`, in this order as in vLLM, to a draw.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.torch.request import Request
from app.engine.torch.sampling.logit_changes import changed_logits
from app.errors import RequestFailedError
from app.generation import SamplingParams, TokenLogprobs
from kernels.interface import TopKTopP

CACHED_NUMBERS = 2**17
"""On a cpu rows are worked at a few at a time: so many float64 numbers, 1 MB, stay in a core's cache."""

LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A request's next token, or the error why there is none."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


class Sampler:
    """Chooses the next token of each request of a step.

    Args:
        top_k_top_p: the kernel that cuts distributions.
        eos_token_ids: what `min_tokens` forbids.
    """

    def __init__(self, top_k_top_p: TopKTopP, eos_token_ids: Collection[int]) -> None:
        self._top_k_top_p = top_k_top_p
        self._eos_token_ids = eos_token_ids

    @torch.inference_mode()
    def sample(self, logits: Tensor, requests: Sequence[Request]) -> list[Sampled]:
        """The next token of each request from its row of `logits` [n, vocab] in float32.

        An error is one row's: it leaves the others alone.
        """
        changed, errors = self._change(logits, requests)
        rows = [row for row in range(len(requests)) if row not in errors]
        greedy = [row for row in rows if requests[row].params.is_greedy]
        token_ids = _likeliest(logits, changed, greedy)
        drawn = sorted(set(rows) - set(greedy), key=lambda row: _kind_of_cut(requests[row].params))
        for some, wide in _in_cache(drawn, logits):
            for place, row in enumerate(some):
                wide[place] = changed[row] if row in changed else logits[row]
            token_ids |= zip(some, self._draw(wide, [requests[row] for row in some]), strict=True)
        return [
            _sampled(logits[row], token_ids[row], request)
            if row in token_ids
            else Sampled(None, error=errors[row])
            for row, request in enumerate(requests)
        ]

    def _change(
        self, logits: Tensor, requests: Sequence[Request]
    ) -> tuple[dict[int, Tensor], dict[int, str]]:
        """By row: the logits that requests change, and why there can be no token."""
        changed: dict[int, Tensor] = {}
        errors: dict[int, str] = {}
        # Neither NaN nor infinity gets past both.
        is_finite = (logits.amax(-1).isfinite() & logits.amin(-1).isfinite()).tolist()
        for row, request in enumerate(requests):
            if not is_finite[row]:
                errors[row] = "the model's logits are not finite"
            elif request.grammar is not None or request.params.changes_logits:
                try:
                    changed[row] = changed_logits(logits[row], request, self._eos_token_ids)
                except RequestFailedError as error:
                    errors[row] = error.message
        return changed, errors

    def _draw(self, logits: Tensor, requests: Sequence[Request]) -> list[int]:
        """One token of each row by chance; overwrites `logits` [n, vocab] in float64."""
        weights = token_weights(logits, [request.params for request in requests], self._top_k_top_p)
        cumulated = weights.cumsum_(-1)
        targets = cumulated[:, -1:] * _column([request.draw() for request in requests], logits)
        # The first token whose cumulated weight exceeds the target: never one of weight 0.
        token_ids: list[int] = torch.searchsorted(cumulated, targets, right=True).squeeze(1).tolist()
        return token_ids


def token_weights(logits: Tensor, params: Sequence[SamplingParams], top_k_top_p: TopKTopP) -> Tensor:
    """What each token weighs in a draw [n, vocab], in proportion to its probability; not for greedy requests.

    Temperature first, then those at least `min_p` as likely as the likeliest, of these the `top_k` likeliest,
    of these the fewest that reach `top_p`.

    Args:
        logits: [n, vocab] in float64, overwritten.
    """
    # The largest becomes 0, so that a small temperature can't overflow.
    logits -= logits.amax(-1, keepdim=True)
    if any(each.temperature != 1 for each in params):
        logits /= _column([each.temperature for each in params], logits)
    if any(each.min_p > 0 for each in params):
        lowest = _column([math.log(each.min_p) if each.min_p > 0 else -math.inf for each in params], logits)
        logits.masked_fill_(logits < lowest, -math.inf)
    if any(each.top_k > 0 or each.top_p < 1 for each in params):
        vocab = logits.shape[1]
        top_k = torch.tensor([min(each.top_k or vocab, vocab) for each in params], device=logits.device)
        logits = top_k_top_p(logits, top_k, _column([each.top_p for each in params], logits).squeeze(1))
    # As exp(logits). That takes several times as long for a logit of -inf, this doesn't.
    return logits.mul_(LOG2_E).exp2_()


def _kind_of_cut(params: SamplingParams) -> tuple[bool, bool]:
    """What rows are worked at together: the kernel does less where all rows want the same."""
    return params.top_k > 0, params.top_p < 1


def _likeliest(logits: Tensor, changed: dict[int, Tensor], rows: Sequence[int]) -> dict[int, int]:
    """The likeliest token of each of these rows."""
    plain = [row for row in rows if row not in changed]
    among = logits if len(plain) == len(logits) else logits[plain]
    likeliest = dict(zip(plain, among.argmax(-1).tolist(), strict=True))
    return likeliest | {row: int(changed[row].argmax()) for row in rows if row in changed}


def _in_cache(rows: Sequence[int], logits: Tensor) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Runs of rows that fit a cpu's cache, elsewhere all rows at once; each with room for it in float64."""
    vocab = logits.shape[1]
    longest = max(1, CACHED_NUMBERS // vocab) if logits.device.type == "cpu" else len(rows)
    room = logits.new_empty((min(longest, len(rows)), vocab), dtype=torch.float64)
    for start in range(0, len(rows), max(1, longest)):
        some = rows[start : start + longest]
        yield some, room[: len(some)]


def _sampled(logits: Tensor, token_id: int, request: Request) -> Sampled:
    num_likeliest = request.params.logprobs
    return Sampled(
        token_id, None if num_likeliest is None else token_logprobs(logits, token_id, num_likeliest)
    )


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """[n, 1] in float64, on the device of `like`."""
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(1)


def token_logprobs(logits: Tensor, token_id: int, num_likeliest: int) -> TokenLogprobs:
    """Of the chosen `token_id` and the likeliest ones, from the model's `logits` [vocab] in float32.

    As the model itself finds them: before biases, penalties, grammars, temperature and cuts.
    """
    logprobs = logits.log_softmax(-1)
    values, token_ids = logprobs.topk(min(num_likeliest, len(logprobs)))
    likeliest = zip(token_ids.tolist(), values.tolist(), strict=True)
    return TokenLogprobs(logprobs[token_id].item(), tuple(likeliest))
