"""The answers of `/router/decisions` and `/router/audit`, put together from those of all routers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import get_args

from app.deployments.messages import Json
from app.errors import UnknownDecisionError
from app.routing.decisions.decision_log import LostResult

_LOST = get_args(LostResult)
_ANSWER_ID = re.compile(r"(?:chatcmpl-|cmpl-|resp_)?(.*)", re.DOTALL)


def named_request(answer_id: str) -> str:
    """The request whose answer has this `id`, with or without the prefix that OpenAI's ids have."""
    match = _ANSWER_ID.fullmatch(answer_id)
    assert match is not None
    return match[1]


def decisions_answer(request_id: str, attempts_by_router: Sequence[Sequence[Json]]) -> Json:
    """All routers' receipts for one request, in the order of its attempts; the last has the outcome so far.

    Raises:
        UnknownDecisionError: no router has one.
    """
    attempts = sorted(chain.from_iterable(attempts_by_router), key=itemgetter("choice"))
    if not attempts:
        raise UnknownDecisionError(request_id)
    last = attempts[-1]
    return {
        "request_id": request_id,
        "outcome": last["outcome"],
        "rank": last["winner"],
        "failed_ranks": [each["winner"] for each in attempts if each["outcome"] in _LOST],
        "predicted_ttft_s": last["predicted_ttft_s"],
        "actual_ttft_s": last["actual_ttft_s"],
        "attempts": attempts,
    }


def audit_answer(routers: Sequence[Json]) -> tuple[Json, int]:
    """All routers' audits together, and the HTTP status: 503 unless every rank could be compared."""
    ranks = [rank for router in routers for rank in router["ranks"]]
    is_complete = all(rank["equal"] is not None for rank in ranks)
    is_different = any(rank["equal"] is False for rank in ranks)
    equal = False if is_different else True if is_complete else None
    return {"equal": equal, "complete": is_complete, "routers": routers}, 200 if is_complete else 503
