"""How likely the model itself finds a token: before biases, penalties, grammars, temperature and cuts."""

from __future__ import annotations

from torch import Tensor

from app.generation import TokenLogprobs


def token_logprobs(logits: Tensor, token_id: int, num_likeliest: int) -> TokenLogprobs:
    """Of the chosen `token_id` and the likeliest ones, from the model's `logits` [vocab] in float32."""
    logprobs = logits.log_softmax(-1)
    values, token_ids = logprobs.topk(min(num_likeliest, len(logprobs)))
    likeliest = zip(token_ids.tolist(), values.tolist(), strict=True)
    return TokenLogprobs(logprobs[token_id].item(), tuple(likeliest))
