"""How likely the model itself finds a token: before biases, penalties, grammars, temperature and cuts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities at one place of an output.

    They are of the raw distribution, `log_softmax` of the model's logits in float32, as OpenAI and vLLM give
    them: what the request asks of sampling changes the choice, but not these. So the chosen token may be none
    of the likeliest.

    Attributes:
        logprob: the chosen token's.
        likeliest: (token id, logprob) of as many as were asked for, the likeliest first.
    """

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, token_id: int, num_likeliest: int) -> TokenLogprobs:
    """Of the chosen `token_id` and the likeliest ones, from the model's `logits` [vocab] in float32."""
    logprobs = logits.log_softmax(-1)
    values, token_ids = logprobs.topk(min(num_likeliest, len(logprobs)))
    likeliest = zip(token_ids.tolist(), values.tolist(), strict=True)
    return TokenLogprobs(logprobs[token_id].item(), tuple(likeliest))
