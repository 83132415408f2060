"""What a request says in its headers: what is taken, and how a refusal reads."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.datastructures import Headers

from app.api.headers import (
    MAX_NAME_CHARS,
    PinnedRank,
    named_session,
    named_tenant,
    new_request_id,
    pinned_rank,
)
from app.api.openai.completion import CompletionRequest
from app.errors import InvalidRequestError, UnknownRankError
from tests.support.completion_bodies import chat, refusal, text

TENANT_HEADER = "X-Tenant"


def headers(name: bytes, *values: bytes) -> Headers:
    """As an ASGI server gives them: names in small letters, values as they came."""
    return Headers(raw=[(b"host", b"localhost"), *((name, value) for value in values)])


def session_headers(*values: bytes) -> Headers:
    return headers(b"x-session-id", *values)


def tenant_headers(*values: bytes) -> Headers:
    return headers(b"x-tenant", *values)


def rank_headers(*values: str) -> Headers:
    return headers(b"x-data-parallel-rank", *(value.encode("latin-1") for value in values))


@pytest.mark.parametrize("value", ["a", "A", "3f2b-77", "user:7/chat?8=~", "0" * MAX_NAME_CHARS])
def test_a_session_is_taken_as_it_was_sent(value: str) -> None:
    assert named_session(session_headers(value.encode())) == value


def test_a_session_may_be_left_out() -> None:
    assert named_session(session_headers()) is None


@pytest.mark.parametrize(
    ("values", "given"),
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
def test_what_a_session_cannot_be_is_refused_by_the_headers_name_and_not_shown(
    values: list[bytes], given: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        named_session(session_headers(*values))
    error = caught.value
    assert (error.status, error.param, error.code) == (400, "x-session-id", "invalid_session")
    assert error.message == (
        f"x-session-id: {given}; one header of 1 to 256 visible ASCII characters without commas is allowed"
    )


def tenant_refusal(given: Headers) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        named_tenant(given, TENANT_HEADER)
    error = caught.value
    assert (error.status, error.param, error.code) == (400, TENANT_HEADER, "invalid_tenant")
    assert error.message.startswith(f"{TENANT_HEADER}: ")
    assert error.message.endswith("one header of 1 to 256 visible ASCII characters without commas is needed")
    return error


@pytest.mark.parametrize(
    "value", ["a", "A", "team-7", "urn:org:7/x?y=z#!$%&'()*+;<>@[]^_`{|}~", "0" * MAX_NAME_CHARS]
)
def test_a_tenant_is_taken_as_it_was_sent(value: str) -> None:
    assert named_tenant(tenant_headers(value.encode()), TENANT_HEADER) == value


@pytest.mark.parametrize("configured", ["X-Tenant", "x-tenant", "X-TENANT"])
def test_the_case_of_the_tenant_headers_name_does_not_matter(configured: str) -> None:
    assert named_tenant(tenant_headers(b"a"), configured) == "a"


def test_without_a_configured_header_there_are_no_tenants() -> None:
    assert named_tenant(tenant_headers(b"a", b"b"), None) is None


def test_a_tenant_must_be_there() -> None:
    assert "0 headers" in tenant_refusal(tenant_headers()).message
    assert "0 headers" in tenant_refusal(headers(b"x_tenant", b"a")).message


@pytest.mark.parametrize("values", [(b"a", b"b"), (b"a", b"a"), (b"a", b""), (b"a",) * 9])
def test_a_tenant_must_be_there_once(values: tuple[bytes, ...]) -> None:
    assert f"{len(values)} headers" in tenant_refusal(tenant_headers(*values)).message


NO_TENANT = {
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


@pytest.mark.parametrize("case", NO_TENANT)
def test_what_a_tenant_cannot_be_is_not_shown(case: str) -> None:
    value = NO_TENANT[case]
    message = tenant_refusal(tenant_headers(value)).message
    assert f"{len(value)} characters" in message
    assert "team" not in message
    assert "tttt" not in message


def pinned(given: Headers, body: CompletionRequest) -> PinnedRank | None:
    return pinned_rank(given, body.rank_fields)


def test_the_header_beats_the_body() -> None:
    assert pinned(rank_headers(), text()) is None
    assert pinned(rank_headers(), text(routed_dp_rank=0)) == (0, "routed_dp_rank")
    assert pinned(rank_headers("3"), text(routed_dp_rank=0)) == (3, "X-Data-Parallel-Rank")
    assert pinned(rank_headers("0"), text(data_parallel_rank=1)) == (0, "X-Data-Parallel-Rank")


@pytest.mark.parametrize("parse", [text, chat])
def test_the_old_name_of_the_rank_may_only_say_the_same(parse: Any) -> None:
    for more in ({}, {"routed_dp_rank": 1}, {"routed_dp_rank": None}):
        named = pinned(rank_headers(), parse(data_parallel_rank=1, **more))
        assert named is not None
        assert named.rank == 1
    error = refusal(parse, data_parallel_rank=1, routed_dp_rank=0)
    assert error.param == "data_parallel_rank"
    assert error.message.startswith("data_parallel_rank = 1: the old name of routed_dp_rank, which is 0")


@pytest.mark.parametrize("header", ["", " ", "one", "1.0", "0x1", "+1", "1_0", "0,1", "\xb2", "9" * 19])
def test_a_header_that_is_no_integer(header: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        pinned(rank_headers(header), text(routed_dp_rank=0))
    assert caught.value.param == "X-Data-Parallel-Rank"
    assert repr(header) in caught.value.message


@pytest.mark.parametrize("headers", [("0", "1"), ("1", "1"), ("1", "")])
def test_a_rank_is_named_by_one_header(headers: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="Rank: 2 headers; one is allowed") as caught:
        pinned(rank_headers(*headers), text())
    assert (caught.value.status, caught.value.param) == (400, "X-Data-Parallel-Rank")


@pytest.mark.parametrize("rank", [-1, 4, 10**17])
def test_a_rank_that_cannot_exist_is_named_as_the_client_named_it(rank: int) -> None:
    for field, headers, body in (
        ("X-Data-Parallel-Rank", rank_headers(str(rank)), text(routed_dp_rank=0)),
        ("routed_dp_rank", rank_headers(), text(routed_dp_rank=rank)),
        ("data_parallel_rank", rank_headers(), text(data_parallel_rank=rank)),
    ):
        named = pinned(headers, body)
        assert named == (rank, field)
        error = UnknownRankError.of(rank, 4).named(*named)
        assert (error.status, error.param) == (400, field)
        assert error.message == f"{field} = {rank}: allowed are 0 to 3"


@pytest.mark.parametrize(
    ("given", "begins"),
    [(b"trace-1.b_2", "trace-1.b_2-"), (b"a/b c\n%", "a_b_c__-"), (b"x" * 300, "x" * 64 + "-")],
)
def test_a_requests_name_has_the_clients_id(given: bytes, begins: str) -> None:
    names = {new_request_id(headers(b"x-request-id", given)) for _ in range(2)}
    assert len(names) == 2
    for name in names:
        assert name.startswith(begins)
        assert len(name) == len(begins) + 8


def test_a_request_without_an_id_has_a_name_too() -> None:
    assert new_request_id(headers(b"x-request-id")) != new_request_id(headers(b"x-request-id"))
