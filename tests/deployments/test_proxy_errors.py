"""An ASGI application behind the middlewares of Ray's proxy that stops in the middle, as the proxy does."""

from __future__ import annotations

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.deployments.proxy_errors import middlewares

ERROR = {
    "error": {
        "message": "the ingress died while it answered; try again",
        "type": "server_error",
        "param": None,
        "code": "ingress_died",
    }
}


def start(content_type: bytes) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]}


def application(*messages: Message) -> ASGIApp:
    """Sends these, and returns."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    (middleware,) = middlewares()
    wrapped: ASGIApp = middleware.cls(run, *middleware.args, **middleware.kwargs)
    return wrapped


async def answer_of(*messages: Message, path: str = "/") -> httpx.Response:
    transport = httpx.ASGITransport(application(*messages))
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        return await client.get(path, headers={"x-request-id": "r1"})


async def test_an_answer_that_never_began_is_an_error_in_json() -> None:
    answer = await answer_of()
    assert (answer.status_code, answer.json()) == (502, ERROR)
    assert answer.headers["retry-after"] == "1"


async def test_a_stream_that_broke_off_ends_with_an_error_event() -> None:
    answer = await answer_of(
        start(b"text/event-stream; charset=utf-8"),
        {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True},
    )
    first, last, end = answer.text.split("\n\n")
    assert (first, end) == ("data: 1", "")
    assert last.startswith('data: {"error":{"message":"the ingress died')


async def test_anthropics_clients_read_it_in_their_shape() -> None:
    error = {
        **{"type": "api_error", "message": ERROR["error"]["message"]},
        "details": {"error_code": "ingress_died"},
    }
    whole = {"type": "error", "error": error, "request_id": "r1"}
    answer = await answer_of(path="/v1/messages")
    assert (answer.status_code, answer.json(), answer.headers["request-id"]) == (502, whole, "r1")
    stream = await answer_of(start(b"text/event-stream"), path="/v1/messages")
    assert stream.text.startswith('event: error\ndata: {"type":"error","error":{"type":"api_error"')


@pytest.mark.parametrize("content_type", [b"text/event-stream", b"application/json"])
async def test_a_whole_answer_stays_as_it_is(content_type: bytes) -> None:
    answer = await answer_of(start(content_type), {"type": "http.response.body", "body": b"whole"})
    assert (answer.status_code, answer.text) == (200, "whole")


async def test_json_that_broke_off_stays_incomplete() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("nothing is received")

    async def send(message: Message) -> None:
        sent.append(message)

    messages = (
        start(b"application/json"),
        {"type": "http.response.body", "body": b"{", "more_body": True},
    )
    await application(*messages)({"type": "http", "path": "/", "headers": []}, receive, send)
    assert sent == list(messages)
