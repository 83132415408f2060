"""Top-k and top-p masks for the `torch` backend, without sorting the vocabulary where that can be spared."""

from __future__ import annotations

import torch
from torch import Tensor

# Most nuclei (top_p) are small: this many of the likeliest tokens mostly hold one.
FIRST_CANDIDATES = 512


def top_k_top_p(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """See `TopKTopP`."""
    vocab = logits.shape[1]
    top_k = top_k.clamp(max=vocab)
    if vocab <= FIRST_CANDIDATES:
        return _among(vocab, logits, top_k, top_p)[0]
    out, is_decided = _among(FIRST_CANDIDATES, logits, top_k, top_p)
    rows = (~is_decided).nonzero().squeeze(1)
    if len(rows):
        out[rows] = _among(vocab, logits[rows], top_k[rows], top_p[rows])[0]
    return out


def _among(count: int, logits: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """The masked logits if no more than the `count` likeliest tokens remain, and [n] whether that is so."""
    vocab = logits.shape[1]
    values, token_ids = logits.topk(count)
    top_k, top_p = top_k.unsqueeze(1), top_p.unsqueeze(1)
    in_top_k = torch.arange(count, device=logits.device) < top_k
    scores = values.double().masked_fill(~in_top_k, float("-inf"))
    # Probabilities are among the top_k; where that is the vocabulary, more than the candidates.
    all_scores = logits.double().logsumexp(1, keepdim=True)
    shares = (scores - torch.where(top_k == vocab, all_scores, scores.logsumexp(1, keepdim=True))).exp_()
    # Before each token; rounding must not end a sum that is to be 1.
    mass = shares.cumsum(1) - shares
    remains = in_top_k & ((mass < top_p) | (top_p >= 1))
    is_decided = (top_k <= count) | ((top_k == vocab) & ~remains[:, -1:])
    kept = values.masked_fill(~remains, float("-inf"))
    return torch.full_like(logits, float("-inf")).scatter_(1, token_ids, kept), is_decided.squeeze(1)
