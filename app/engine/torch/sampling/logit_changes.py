"""What a request changes in the model's logits before a token is chosen.

In vLLM's order: the grammar's mask, `min_tokens`, `logit_bias`, then the penalties, repetition first. All is
counted from the request's token ids, so a preemption changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from app.engine.torch.request import Grammar, Request
from app.errors import RequestFailedError


def changed_logits(logits: Tensor, request: Request, eos_token_ids: Collection[int]) -> Tensor:
    """A copy of `logits` [vocab] in float64 as `request` wants them; a token that can't be chosen has -inf.

    Raises:
        RequestFailedError: no token can be chosen, or the grammar gave up.
    """
    changed = logits.to(torch.float64, copy=True)
    if request.grammar is not None:
        changed = changed.masked_fill(~_allowed(request.grammar, changed), -math.inf)
    if request.num_output_tokens < request.params.min_tokens:
        endings = {*eos_token_ids, *request.params.stop_token_ids}
        changed[[token_id for token_id in endings if 0 <= token_id < len(changed)]] = -math.inf
    if changed.max() == -math.inf:
        raise RequestFailedError(
            f"after {request.num_output_tokens} output tokens no token may follow: the structured output, "
            "min_tokens and the model's vocabulary leave none"
        )
    bias = request.params.logit_bias
    if bias:
        changed[list(bias)] += changed.new_tensor(list(bias.values()))
    return _penalized(changed, request)


def _allowed(grammar: Grammar, logits: Tensor) -> Tensor:
    """[vocab], whether the token may be next. The tokenizer may know fewer or more tokens than the model."""
    mask = torch.frombuffer(bytearray(grammar.allowed_tokens()), dtype=torch.uint8)[: len(logits)]
    allowed = torch.zeros(len(logits), dtype=torch.bool)
    allowed[: len(mask)] = mask != 0
    return allowed.to(logits.device)


def _penalized(logits: Tensor, request: Request) -> Tensor:
    params = request.params
    if params.repetition_penalty != 1:
        seen = _counts(request.token_ids, logits) > 0
        factor = params.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)
    if params.frequency_penalty or params.presence_penalty:
        counts = _counts(request.output_token_ids, logits)
        logits = logits - params.frequency_penalty * counts - params.presence_penalty * counts.sign()
    return logits


def _counts(token_ids: list[int], logits: Tensor) -> Tensor:
    """[vocab] in float64, how often each token is in `token_ids`."""
    ids = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    return ids.bincount(minlength=len(logits)).to(logits.dtype)
