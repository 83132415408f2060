"""The header that names a tenant: what is taken, and how a refusal reads."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from app.api.headers import MAX_NAME_CHARS
from app.api.tenants import named_tenant
from app.errors import InvalidRequestError
from app.generation import GenerateRequest, SamplingParams

HEADER = "X-Tenant"


def headers(*values: bytes, name: bytes = b"x-tenant") -> Headers:
    """As an ASGI server gives them: names in small letters, values as they came."""
    return Headers(raw=[(b"host", b"localhost"), *((name, value) for value in values)])


def refusal(*values: bytes, name: bytes = b"x-tenant") -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        named_tenant(headers(*values, name=name), HEADER)
    error = caught.value
    assert (error.status, error.param, error.code) == (400, HEADER, "invalid_tenant")
    assert error.message.startswith(f"{HEADER}: ")
    assert error.message.endswith("one header of 1 to 256 visible ASCII characters without commas is needed")
    return error


@pytest.mark.parametrize(
    "value", ["a", "A", "team-7", "urn:org:7/x?y=z#!$%&'()*+;<>@[]^_`{|}~", "0" * MAX_NAME_CHARS]
)
def test_it_is_taken_as_it_was_sent(value: str) -> None:
    assert named_tenant(headers(value.encode()), HEADER) == value


@pytest.mark.parametrize("configured", ["X-Tenant", "x-tenant", "X-TENANT"])
def test_the_case_of_the_headers_name_does_not_matter(configured: str) -> None:
    assert named_tenant(headers(b"a"), configured) == "a"


def test_without_a_configured_header_there_are_no_tenants() -> None:
    assert named_tenant(headers(b"a", b"b"), None) is None


def test_it_must_be_there() -> None:
    assert "0 headers" in refusal().message
    assert "0 headers" in refusal(b"a", name=b"x_tenant").message


@pytest.mark.parametrize("values", [(b"a", b"b"), (b"a", b"a"), (b"a", b""), (b"a",) * 9])
def test_it_must_be_there_once(values: tuple[bytes, ...]) -> None:
    assert f"{len(values)} headers" in refusal(*values).message


NOT_ALLOWED = {
    "empty": b"",
    "white space": b" ",
    "two words": b"team seven",
    "a tab": b"team\tseven",
    "two values in one": b"team,seven",
    "a line's end": b"team\n",
    "a control character": b"team\x00",
    "delete": b"team\x7f",
    "utf-8": "té".encode(),
    "latin-1": "té".encode("latin-1"),
    "no text at all": b"\xff\xfe",
    "a line separator to Python": b"team\x85",
    "a digit to Unicode": "team٣".encode(),
    "too long": b"t" * (MAX_NAME_CHARS + 1),
}


@pytest.mark.parametrize("case", NOT_ALLOWED)
def test_what_it_cannot_be_is_not_shown(case: str) -> None:
    value = NOT_ALLOWED[case]
    message = refusal(value).message
    assert f"{len(value)} characters" in message
    assert "team" not in message
    assert "tttt" not in message


def test_a_request_between_deployments_shows_no_salt() -> None:
    request = GenerateRequest("id", [1, 2], SamplingParams(1), cache_salt="very-secret")
    assert "secret" not in f"{request!r} {request}"
