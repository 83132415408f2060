"""The header that names a session: what is taken, and how a refusal reads. Tenants' has its own tests."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from app.api.headers import MAX_NAME_CHARS, named_session
from app.deployments.messages import ChooseRequest
from app.errors import InvalidRequestError


def headers(*values: bytes) -> Headers:
    """As an ASGI server gives them: names in small letters, values as they came."""
    return Headers(raw=[(b"host", b"localhost"), *((b"x-session-id", value) for value in values)])


@pytest.mark.parametrize("value", ["a", "A", "3f2b-77", "user:7/chat?8=~", "0" * MAX_NAME_CHARS])
def test_it_is_taken_as_it_was_sent(value: str) -> None:
    assert named_session(headers(value.encode())) == value


def test_it_may_be_left_out() -> None:
    assert named_session(headers()) is None


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([b""], "0 characters"),
        ([b"two words"], "9 characters"),
        ([b"one,two"], "7 characters"),
        ([b"caf\xe9"], "4 characters"),
        ([b"line\n"], "5 characters"),
        ([b"s" * (MAX_NAME_CHARS + 1)], "257 characters"),
        ([b"a", b"b"], "2 headers"),
        ([b"a", b"a"], "2 headers"),
        ([b"a", b""], "2 headers"),
    ],
)
def test_what_it_cannot_be_is_refused_by_the_headers_name_and_not_shown(
    values: list[bytes], told: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        named_session(headers(*values))
    error = caught.value
    assert (error.status, error.param, error.code) == (400, "x-session-id", "invalid_session")
    assert error.message == (
        f"x-session-id: {told}; one header of 1 to 256 visible ASCII characters without commas is allowed"
    )


def test_a_request_between_deployments_shows_no_session() -> None:
    assert "very-secret" not in repr(ChooseRequest("id", [], 1, session_id="very-secret"))
