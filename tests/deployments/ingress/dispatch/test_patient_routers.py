"""How long, and how often, a router is asked anew while none answers."""

from __future__ import annotations

import asyncio
import time

import pytest

from app.deployments.ingress.dispatch.patient_routers import PatientRouters
from app.deployments.messages import Assignment, ChooseRequest
from app.errors import NoRouterError
from tests.support.fake_deployments import FakeRouters

REQUEST = ChooseRequest("r", [1, 2], 40)
CHOSEN = Assignment(1, "replica")


class SlowRouters(FakeRouters):
    """Routers whose first answer takes as long as a rank that has to be started first."""

    async def choose(self, request: ChooseRequest) -> Assignment:
        if not self.asked:
            await asyncio.sleep(0.2)
        return await super().choose(request)


async def test_the_time_in_which_a_rank_was_started_does_not_count() -> None:
    routers = PatientRouters(SlowRouters([NoRouterError("busy"), CHOSEN]), patience_s=0.1, retry_s=0.0)
    assert await routers.choose(REQUEST) == (CHOSEN, 1)


async def test_the_pauses_grow_until_the_patience_ends() -> None:
    fakes = FakeRouters([NoRouterError("busy")] * 100)
    routers = PatientRouters(fakes, patience_s=0.3, retry_s=0.02)
    began_at = time.monotonic()
    with pytest.raises(NoRouterError, match=r"^no router answers$"):
        await routers.choose(REQUEST)
    assert time.monotonic() - began_at >= 0.3
    assert 2 <= len(fakes.asked) <= 6, "0, 20, 60, 140, 300 ms, and perhaps one more"
    assert [each.choice_seq for each in fakes.asked] == list(range(len(fakes.asked)))
