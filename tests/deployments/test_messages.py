"""What deployments say to each other: no secret of a request is in its description."""

from __future__ import annotations

from app.deployments.messages import ChooseRequest
from app.generation import GenerateRequest, SamplingParams


def test_a_request_between_deployments_shows_no_session() -> None:
    assert "very-secret" not in repr(ChooseRequest("id", [], 1, session_id="very-secret"))


def test_a_request_between_deployments_shows_no_salt() -> None:
    request = GenerateRequest("id", [1, 2], SamplingParams(1), cache_salt="very-secret")
    assert "secret" not in f"{request!r} {request}"
