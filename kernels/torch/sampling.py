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
    # One more than any top_k, which shows whether the next token is as likely as the last that remains.
    num_candidates = min(vocab, 1 + max([FIRST_CANDIDATES, *top_k[~takes_all].tolist()]))
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
    """The masked logits if fewer than the `count` likeliest tokens remain, and [n] whether that is so.

    `count` is more than any `top_k` but those for which `takes_all` [n]: their top_k is the vocabulary.
    """
    values, token_ids = logits.topk(count)
    in_top_k = torch.arange(count, device=logits.device) < top_k.unsqueeze(1)
    # Sums over the candidates one after another: how many others there are in the batch changes no bit.
    masses = (values.double() - values[:, :1]).exp().masked_fill_(~in_top_k, 0)
    up_to = masses.cumsum(1)
    total = up_to[:, -1:].clone()
    if takes_all.any():  # the candidates are only a part of this top_k
        rows = slice(None) if takes_all.all() else takes_all
        total[rows] = (logits[rows].double() - values[rows, :1]).exp().sum(1, keepdim=True)
    # The mass before each token; rounding must not end a sum that is to be 1.
    is_wanted = in_top_k & (((up_to - masses) / total < top_p.unsqueeze(1)) | (top_p >= 1).unsqueeze(1))
    num_kept = is_wanted.sum(1, keepdim=True)
    is_decided = ~takes_all | (num_kept.squeeze(1) < count) | (count == logits.shape[1])
    remains = torch.arange(count, device=logits.device) < num_kept
    out = torch.full_like(logits, NEVER).scatter_(1, token_ids, values.masked_fill(~remains, NEVER))
    last = values.gather(1, num_kept - 1)
    following = values.gather(1, num_kept.clamp(max=count - 1))
    is_tied = ((following == last) & (num_kept < count)).squeeze(1)
    if is_tied.any():
        out[is_tied] = _likeliest(logits[is_tied], last[is_tied], num_kept[is_tied])
    return out, is_decided


def _likeliest(logits: Tensor, lowest: Tensor, count: Tensor) -> Tensor:
    """The masked logits of the `count` [n, 1] likeliest tokens, of which `lowest` [n, 1] is the last.

    Of equal logits those of the lowest token ids.
    """
    is_above = logits > lowest
    is_equal = logits == lowest
    is_wanted = is_equal.cumsum(1) <= count - is_above.sum(1, keepdim=True)
    return logits.masked_fill(~(is_above | (is_equal & is_wanted)), NEVER)


def _large_nuclei(logits: Tensor, top_p: Tensor) -> Tensor:
    """The masked logits for top_p [n, 1] alone, below 1: whole levels of logits, and a part of one more."""
    wide = logits.double()
    shares = wide.softmax(1)
    depths = wide.amax(1, keepdim=True) - wide
    levels = depths.mul_(LEVELS_PER_NAT).clamp_(max=NUM_LEVELS - 1).long()
    of_level = shares.new_zeros(len(logits), NUM_LEVELS).scatter_add_(1, levels, shares)
    up_to_level = of_level.cumsum(1)
    last = torch.searchsorted(up_to_level, top_p).clamp_(max=NUM_LEVELS - 1)
    is_above = levels < last
    is_last = levels == last
    # Only that level's tokens are put in order; rows with fewer of them get others to fill up.
    values, token_ids = wide.masked_fill(~is_last, NEVER).topk(int(is_last.sum(1).max()))
    in_last = is_last.gather(1, token_ids)
    masses = shares.gather(1, token_ids).mul_(in_last)
    before = up_to_level.gather(1, last) - of_level.gather(1, last) + masses.cumsum(1) - masses
    num_of_last = (in_last & (before < top_p)).sum(1, keepdim=True)
    # At least one token of the level remains, unless rounding has put its beginning beyond `top_p`.
    lowest = values.gather(1, (num_of_last - 1).clamp(min=0)).to(logits.dtype)
    return _likeliest(logits, lowest, is_above.sum(1, keepdim=True) + num_of_last)
