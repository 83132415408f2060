"""Top-k and top-p masks for the `torch` backend, without sorting the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_CANDIDATES = 128
"""Most nuclei (top_p) are small: this many of the likeliest tokens mostly hold one."""
LEVELS_PER_NAT, NUM_LEVELS = 64, 4096
"""Into how many levels of equal width, counted from the likeliest down, a large nucleus sorts its logits."""
NEVER = float("-inf")


def top_k_top_p(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """See `TopKTopP`."""
    vocab = logits.shape[1]
    takes_all = top_k >= vocab
    num_candidates = min(vocab, max([FIRST_CANDIDATES, *top_k[~takes_all].tolist()]))
    out, is_decided = _among(num_candidates, logits, top_k, top_p, takes_all)
    keeps_all = takes_all & (top_p >= 1)
    if keeps_all.any():
        out[keeps_all] = logits[keeps_all]
    is_open = ~(is_decided | keeps_all)
    if is_open.any():
        out[is_open] = _large_nuclei(logits[is_open], top_p[is_open].unsqueeze(1))
    return out


def _among(
    count: int, logits: Tensor, top_k: Tensor, top_p: Tensor, takes_all: Tensor
) -> tuple[Tensor, Tensor]:
    """The masked logits if no more than the `count` likeliest tokens remain, and [n] whether that is so.

    `count` is no less than any `top_k` but those for which `takes_all` [n]: their top_k is the vocabulary.
    """
    values, token_ids = logits.topk(count)
    in_top_k = torch.arange(count, device=logits.device) < top_k.unsqueeze(1)
    shares = values.double().masked_fill(~in_top_k, NEVER).softmax(1)
    if takes_all.any():  # the candidates are only a part of this top_k
        rows = slice(None) if takes_all.all() else takes_all
        shares[rows] = logits[rows].double().softmax(1).gather(1, token_ids[rows])
    # Before each token; rounding must not end a sum that is to be 1.
    before = shares.cumsum(1) - shares
    remains = in_top_k & ((before < top_p.unsqueeze(1)) | (top_p >= 1).unsqueeze(1))
    is_decided = ~(takes_all & remains[:, -1]) if count < logits.shape[1] else torch.ones_like(takes_all)
    kept = values.masked_fill(~remains, NEVER)
    return torch.full_like(logits, NEVER).scatter_(1, token_ids, kept), is_decided


def _large_nuclei(logits: Tensor, top_p: Tensor) -> Tensor:
    """The masked logits for top_p [n, 1] alone, below 1: whole levels of logits, and a part of one more."""
    wide = logits.double()
    shares = wide.softmax(1)
    depths = wide.amax(1, keepdim=True) - wide
    levels = depths.mul_(LEVELS_PER_NAT).clamp_(max=NUM_LEVELS - 1).long()
    of_level = shares.new_zeros(len(logits), NUM_LEVELS).scatter_add_(1, levels, shares)
    up_to_level = of_level.cumsum(1)
    last = torch.searchsorted(up_to_level, top_p).clamp_(max=NUM_LEVELS - 1)
    remains = levels < last
    is_last = levels == last
    # Only that level's tokens are put in order; rows with fewer of them get others to fill up, which stay.
    _, token_ids = wide.masked_fill(~is_last, NEVER).topk(int(is_last.sum(1).max()))
    in_last = is_last.gather(1, token_ids)
    shares = shares.gather(1, token_ids).mul_(in_last)
    before = up_to_level.gather(1, last) - of_level.gather(1, last) + shares.cumsum(1) - shares
    remains.scatter_(1, token_ids, torch.where(in_last, before < top_p, remains.gather(1, token_ids)))
    return logits.masked_fill(~remains, NEVER)
