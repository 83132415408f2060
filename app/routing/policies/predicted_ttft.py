"""The policy `predicted_ttft`, the default: the soonest first token, and the least delay to others.

    cost_r  = wait_r + (1 + d_r) * own_r + (q + e_r) * uncached_r / rate_r + l_r * prompt / rate_r
    own_r   = (uncached_r - copied_r) / rate_r
    wait_r  = max(waiting tokens_r / rate_r, admission_r)       admission_r: see `prediction`
    q       = 2 * harmonic mean of wait_r over the ranks / mean prefill time of a request
    d_r     = b_r * busy_r / (g_r + busy_r / 2)                busy_r = wait_r + own_r / 2

Without q, this is the predicted time to first token. By Little's law wait / prefill time requests wait on a
rank, and a second of work delays all of them, and those that come before the queue is gone: u / (1 - u) times
as many at utilisation u, as many again where the ranks are half busy, hence the 2. So q grows with overload,
where computing a prefix again costs every request. The harmonic mean is 0 as soon as one rank is idle, since
work can then go where it delays no request; with the arithmetic mean, one rank's queue alone would tie every
request to the prefix that made it queue. The mean prefill time is that of past requests; before the first,
this prompt stands for them.

A prompt for which there is no room waits until others are done, while those before it are computed: so the
longer of both waits counts. q is the same for either: where memory lets requests in, one in a prefill time of
its own, u uncached tokens beside the mean's u' keep each of wait / prefill time requests waiting for u / u'
of that, which is wait * u / u' in all, whatever the prefill time.

d, e, l and what may be copied price the use of the rank itself, in the unit of the prompt's own work; they
are learnt from past requests (`app.routing.prices`). d is the delay to requests that are bound to the rank,
as it alone holds their prefix: b_r of them a second, divided by 1 - utilisation for those that they delay in
turn. One that finds the rank busy for w seconds waits, or has the g_r seconds of prefill that only this rank
saves done elsewhere: it loses about w / (1 + w / 2g), as it would where g is exponential; half of a prompt's
own time has passed when it comes. e is what must be computed again for what the rank evicts to hold this
prompt. l is the share of prompts like this one that the rank will have evicted when they return. Without
these, an idle rank that holds what all prompts begin with takes every conversation, until its cache thrashes
while others are empty, and a batch over documents evicts conversations everywhere.

What many prompts begin with may be computed on one more rank without that counting against it, neither as
this prompt's work nor as delay to others, where new prompts return: so conversations spread before there is a
price to pay, to the ranks to which fewer are bound.

Ties, near ones included, go to the rank with fewer requests (its decode steps compete with this prefill),
then to the one with the least tokens assigned so far, then to the first.

Source: replays of a real trace and of bursts on one hot prefix, `docs/decisions/0001-harmonic-mean-wait.md`,
`0025-near-ties-and-growing-queues.md`, `0030-waiting-for-memory.md` and `0061-the-price-of-a-rank.md`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from app.routing.policies.base import Choice, PolicyInput, PolicySpec
from app.routing.policies.prediction import admission_s, admission_waits_s, chosen
from app.routing.policies.ranking import lowest
from app.routing.rank_view import PRICE_ROWS, ROWS, Floats, RankView, RankViews

NEAR_TIE: Final = 0.005
"""Predicted times this close to the lowest, relative to it, are equal: no prediction is better than that."""
QUEUE_GROWTH: Final = 2.0
"""Requests that a second of work delays in the end, for each that waits now."""


def predicted_ttft(views: RankViews, given: PolicyInput) -> Choice:
    """The rank with the lowest cost in seconds, see the module."""
    counts, prices = views.counts, views.prices
    rate, num_tokens = views.prefill_rate, given.num_tokens
    waiting = counts[ROWS.waiting_tokens]
    admission = admission_waits_s(views, num_tokens)
    if admission is not None:
        waiting = np.maximum(waiting, admission * rate)
    prefill_s = _mean((given.mean_uncached_tokens or num_tokens - views.cached_tokens) / rate)
    weight = 1 + QUEUE_GROWTH * _harmonic_mean_wait(waiting, rate) / prefill_s
    uncached = views.uncached_tokens(num_tokens)
    copied = None
    if given.copyable_tokens:
        copied = np.maximum(uncached - (num_tokens - given.copyable_tokens), 0)
    busy = (uncached if copied is None else uncached - copied) * 0.5
    busy += waiting
    delay = busy / (busy + prices[PRICE_ROWS.bound_tokens])
    delay *= prices[PRICE_ROWS.bound_load]
    costs = delay + weight
    if given.loss_row is not None:
        costs += prices[PRICE_ROWS.eviction_price]
    costs *= uncached
    costs += waiting
    if given.loss_row is not None:
        costs += prices[given.loss_row] * num_tokens
    if copied is not None:
        costs -= copied * (1 + delay)
    costs /= rate
    tied = (costs <= costs.item(costs.argmin()) * (1 + NEAR_TIE)).nonzero()[0]
    if len(tied) == 1:
        best = tied.item(0)
    else:
        best = lowest(tied, counts[ROWS.num_requests], counts[ROWS.assigned_tokens])
    return chosen(views, best, num_tokens, costs)


def _describe_load(view: RankView, num_tokens: int) -> str:
    wait_s = admission_s(view, num_tokens)
    memory = f", and room for this prompt in {wait_s:.3g} s" if wait_s else ""
    return f"{int(view.counts.waiting_tokens)} waiting{memory}"


def _mean(values: Floats | float) -> float:
    return values if isinstance(values, float) else float(values.mean())


def _harmonic_mean_wait(waiting_tokens: Floats, rate: Floats | float) -> float:
    """In seconds, over the ranks; 0 when no request waits on one of them."""
    if waiting_tokens[waiting_tokens.argmin()] == 0:
        return 0.0
    return len(waiting_tokens) / float(np.add.reduce(rate / waiting_tokens))


PREDICTED_TTFT: Final = PolicySpec(
    name="predicted_ttft",
    description="the soonest first token: queued work and this prompt's uncached tokens over the rank's "
    "measured rate, the delay caused to others, and what its cache would lose",
    choose=predicted_ttft,
    cost_unit="seconds to the first token, and of delay and work to others",
    looks_at_caches=True,
    near_tie=NEAR_TIE,
    describe_load=_describe_load,
)
