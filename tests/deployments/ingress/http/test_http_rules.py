"""What holds for every request before any route, on an application with the same kinds of routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from app.deployments.ingress.http.http_rules import HttpRules
from app.settings.ingress import IngressConfig

PAGE = "https://app.example.org"


def application() -> FastAPI:
    """Its routes are included, as Ray includes those of an ingress's class."""
    app, routes = FastAPI(), APIRouter()

    @routes.get("/v1/models")
    @routes.get("/v1/models/{name:path}")
    async def model(name: str = "all") -> dict[str, str]:
        return {"name": name}

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return Response(await request.body())

    @routes.get("/flush_cache")
    @routes.post("/flush_cache")
    async def flush() -> StreamingResponse:
        return StreamingResponse(iter(["a", "b"]))

    app.include_router(routes)
    return app


async def ask(method: str, path: str, *, origins: Sequence[str] = (), **given: Any) -> httpx.Response:
    app = application()
    app.add_middleware(HttpRules, settings=lambda: IngressConfig(cors_origins=tuple(origins)))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport) as client:
        return await client.request(method, f"http://kvbeacon{path}", **given)


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/", "//v1/models", "/v1//models//", "/v1/models///"]
)
async def test_slashes_too_many_change_nothing(path: str) -> None:
    answer = await ask("GET", path)
    assert (answer.status_code, answer.json()) == (200, {"name": "all"})


async def test_a_body_reaches_a_path_with_slashes_too_many() -> None:
    assert (await ask("POST", "//v1//chat/completions/", content=b"abc")).content == b"abc"


async def test_a_name_may_have_a_slash() -> None:
    for path in ("/v1/models/org/name", "/v1/models/org%2Fname"):
        assert (await ask("GET", path)).json() == {"name": "org/name"}


@pytest.mark.parametrize("path", ["/v1/models", "/flush_cache"])
async def test_head_is_get_without_the_body(path: str) -> None:
    whole, head = await ask("GET", path), await ask("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == whole.headers
    assert (await ask("HEAD", "/nowhere")).status_code == 404
    assert (await ask("HEAD", "/v1/chat/completions")).status_code == 405


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/v1/chat/completions/", "OPTIONS, POST"),
        ("/flush_cache", "GET, HEAD, OPTIONS, POST"),
    ],
)
async def test_options_says_which_methods_there_are(path: str, allowed: str) -> None:
    answer = await ask("OPTIONS", path)
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allowed, b"")
    assert (await ask("OPTIONS", "/nowhere")).status_code == 404


def preflight(origin: str = PAGE) -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-os",
    }


async def test_a_page_of_an_allowed_origin_may_ask_and_read() -> None:
    answer = await ask("OPTIONS", "/v1/chat/completions", origins=[PAGE], headers=preflight())
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    read = await ask("POST", "/v1/chat/completions", origins=[PAGE], headers={"origin": PAGE}, content=b"a")
    assert read.headers["access-control-allow-origin"] == PAGE
    assert "x-kvbeacon-ignored-fields" in read.headers["access-control-expose-headers"]
    anyone = await ask("GET", "/v1/models", origins=["*"], headers={"origin": "http://other"})
    assert anyone.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origins", [[], ["https://other.example.org"]])
async def test_a_page_of_another_origin_may_not_read(origins: list[str]) -> None:
    answer = await ask("OPTIONS", "/v1/chat/completions", origins=origins, headers=preflight())
    assert answer.status_code == 204
    read = await ask("GET", "/v1/models", origins=origins, headers={"origin": PAGE})
    assert read.status_code == 200
    for each in (answer, read):
        assert not any(name.startswith("access-control") for name in each.headers)


@pytest.mark.parametrize("header", [(b"x-name", "ü".encode()), (b"x-name", b"\xff")])
async def test_a_header_that_isnt_ascii_is_refused(header: tuple[bytes, bytes]) -> None:
    answer = await ask("GET", "/v1/models", headers=[header])
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_header")
    assert error["message"].startswith("x-n")


@pytest.mark.parametrize(
    "origin", ["*", "https://a.example.org", "http://localhost:3000", "http://[::1]:8080"]
)
def test_origins_that_are_allowed(origin: str) -> None:
    assert IngressConfig(cors_origins=(origin,)).cors_origins == (origin,)


@pytest.mark.parametrize(
    "origin", ["", "example.org", "https://a.example.org/", "https://*", "ftp://a", "null"]
)
def test_origins_that_are_none(origin: str) -> None:
    with pytest.raises(ValueError, match="http://host or https://host is needed"):
        IngressConfig(cors_origins=(origin,))


@pytest.mark.parametrize("more", [(), ((b"x-name", b"\xff"),)])
async def test_anthropics_clients_read_the_requests_id_and_errors_in_their_shape(
    more: tuple[tuple[bytes, bytes], ...],
) -> None:
    answer = await ask("GET", "/v1//messages/", headers=[(b"x-request-id", b"r1"), *more])
    assert answer.headers["request-id"] == "r1"
    if more:
        assert (answer.status_code, answer.json()["type"], answer.json()["request_id"]) == (
            400,
            "error",
            "r1",
        )
    assert "request-id" not in (await ask("GET", "/v1/models", headers=[(b"x-request-id", b"r1")])).headers
