"""The logprobs of a prompt's tokens: how likely the model found each one after those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from app.engine.torch.schedule import ScheduledRequest
from app.generation import TokenLogprobs

MAX_NUMBERS = 2**24
"""Logits that exist at once: 64 MB in float32, where a whole prompt's could be gigabytes."""


@torch.inference_mode()
def score_prompts(
    scheduled: Sequence[ScheduledRequest], hidden: Tensor, logits_of: Callable[[Tensor], Tensor]
) -> None:
    """Give each request the logprobs of the prompt tokens after the places that the step has `scored`.

    Args:
        scheduled: the step's, before it is recorded as computed.
        hidden: [places, hidden] of all of them, in order.
        logits_of: makes logits [n, vocab] in float32 of some rows.
    """
    start = 0
    for item in scheduled:
        places, request = item.scored, item.request
        if request.prompt_logprobs is not None and places:
            rows = hidden[start : start + len(places)]
            next_token_ids = request.token_ids[places.start + 1 : places.stop + 1]
            num_likeliest = request.params.prompt_logprobs or 0
            request.prompt_logprobs += _token_logprobs(rows, next_token_ids, num_likeliest, logits_of)
            start += len(places)


def _token_logprobs(
    hidden: Tensor, token_ids: Sequence[int], num_likeliest: int, logits_of: Callable[[Tensor], Tensor]
) -> Iterator[TokenLogprobs]:
    """Of each token, after the row at its place; of the raw distribution, as those of outputs."""
    at_once, start = 1, 0  # the first row tells how many tokens there are
    while start < len(token_ids):
        logprobs = logits_of(hidden[start : start + at_once]).log_softmax(-1)
        ids = torch.tensor(token_ids[start : start + at_once], device=logprobs.device)
        own = logprobs.gather(1, ids.unsqueeze(1)).squeeze(1).tolist()
        values, likeliest = (each.tolist() for each in logprobs.topk(min(num_likeliest, logprobs.shape[1])))
        for place, logprob in enumerate(own):
            yield TokenLogprobs(logprob, tuple(zip(likeliest[place], values[place], strict=True)))
        start += at_once
        at_once = max(1, MAX_NUMBERS // logprobs.shape[1])
