"""What is let in, before any route, on an application whose routes wait when they are told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Message

from app.api.openai.responses import error_headers, error_json
from app.deployments.ingress.access import gate
from app.deployments.ingress.access.gate import Entrance, Gate
from app.deployments.ingress.access.visit import visit_of
from app.deployments.ingress.http.http_rules import HttpRules
from app.errors import RequestError
from app.settings.ingress import IngressConfig

KEY = "sk-0123456789abcdef"
PAGE = "https://page.example.org"


async def answer_error(request: Request, error: RequestError) -> Response:
    return JSONResponse(error_json(error), error.status, error_headers(error))


class Server:
    """The application behind a gate; what is in `/wait` leaves when `go` is set."""

    def __init__(self, **settings: Any) -> None:
        config = IngressConfig(cors_origins=(PAGE,), **settings)
        entrance = Entrance(config)
        self.go = asyncio.Event()
        self._let_in = asyncio.Semaphore(0)
        app = self.app = FastAPI()
        app.add_middleware(Gate, entrance=lambda: entrance, answer_error=answer_error)
        app.add_middleware(HttpRules, settings=lambda: config)
        app.get("/health")(lambda: "well")

        @app.post("/wait")
        async def wait(request: Request) -> str:
            visit_of(request).begin_wait()
            self._let_in.release()
            await self.go.wait()
            return "done"

        @app.post("/output")
        async def output(request: Request) -> StreamingResponse:
            visit = visit_of(request)
            visit.begin_wait()
            visit.charge_prompt(100)
            visit.begin_output()
            self._let_in.release()
            return StreamingResponse(self._parts())

        app.add_exception_handler(RequestError, answer_error)  # type: ignore[arg-type]

    async def _parts(self) -> AsyncIterator[bytes]:
        yield b"begun"
        await self.go.wait()

    def client(self, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://kvbeacon", headers=headers)

    async def begin(self, path: str) -> tuple[Callable[[], None], Awaitable[None]]:
        """A request whose client stays until the first value is called; returns once it has been let in."""
        gone = asyncio.Event()

        async def receive() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            pass

        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        task = asyncio.create_task(self.app(scope, receive, send))
        await self._let_in.acquire()
        return gone.set, task


@pytest.fixture
def keys_file(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def write(limits: str = "") -> dict[str, Any]:
        path = tmp_path / "keys.yaml"
        path.write_text(f"keys: [{{name: alice, key: {KEY}, {limits}}}]")
        path.chmod(0o600)
        return {"access": {"keys_file": path}}

    return write


KeysFile = Callable[..., dict[str, Any]]


async def test_without_a_key_no_body_is_waited_for(
    keys_file: KeysFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.Event().wait()

    monkeypatch.setattr(gate, "REFUSED_BODY_S", 0.01)
    async with Server(**keys_file()).client() as client:
        answer = await client.post("/wait", content=endless())
        assert (answer.status_code, answer.headers["connection"]) == (401, "close")
        answer = await client.post("/wait", content=b"{}")
        assert answer.status_code == 401
        assert "connection" not in answer.headers
        assert answer.headers["www-authenticate"] == "Bearer"
        error = answer.json()["error"]
        assert (error["type"], error["code"], error["param"]) == (
            "authentication_error",
            "invalid_api_key",
            None,
        )
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/nothing")).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY} "},
        {"x-api-key": KEY},
        {"authorization": "Basic abc", "X-Api-Key": KEY},
        {"authorization": "Bearer sk-of-another-server", "x-api-key": KEY},
    ],
)
async def test_how_a_key_is_sent(keys_file: KeysFile, headers: dict[str, str]) -> None:
    server = Server(**keys_file())
    server.go.set()
    async with server.client(**headers) as client:
        assert (await client.post("/wait")).status_code == 200


async def test_a_wrong_key_isnt_shown(keys_file: KeysFile) -> None:
    async with Server(**keys_file()).client(authorization="Bearer sk-of-another-server") as client:
        answer = await client.post("/wait")
    assert answer.status_code == 401
    assert "another" not in answer.text


async def test_a_browser_asks_without_a_key_and_may_read_the_refusal(keys_file: KeysFile) -> None:
    asks = {"origin": PAGE, "access-control-request-method": "POST"}
    async with Server(**keys_file()).client(**asks) as client:
        preflight = await client.options("/wait")
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, PAGE)
        refusal = await client.post("/wait")
        assert (refusal.status_code, refusal.headers["access-control-allow-origin"]) == (401, PAGE)


async def test_a_client_that_goes_gives_its_place_back(keys_file: KeysFile) -> None:
    server = Server(**keys_file("concurrent_requests: 1"))
    leave, task = await server.begin("/output")
    async with server.client(authorization=f"Bearer {KEY}") as client:
        refusal = await client.post("/output")
        assert (refusal.status_code, refusal.headers["retry-after"]) == (429, "1")
        assert "concurrent_requests = 1" in refusal.json()["error"]["message"]
        leave()
        await task
        server.go.set()
        assert (await client.post("/output")).status_code == 200


async def test_tokens_that_are_owed(keys_file: KeysFile) -> None:
    server = Server(**keys_file("tokens_per_minute: 60"))
    server.go.set()
    async with server.client(authorization=f"Bearer {KEY}") as client:
        assert (await client.post("/output")).status_code == 200
        refusal = await client.post("/output")
    assert refusal.status_code == 429
    assert 40 <= int(refusal.headers["retry-after"]) <= 41


async def test_as_many_wait_as_have_room() -> None:
    server = Server(max_waiting_requests=2)
    waiting = [await server.begin("/wait") for _ in range(2)]
    async with server.client() as client:
        refusal = await client.post("/wait")
        assert (refusal.status_code, refusal.headers["retry-after"]) == (429, "1")
        assert "ingress.max_waiting_requests = 2: that many wait" in refusal.json()["error"]["message"]
        assert (await client.get("/health")).status_code == 200
        server.go.set()
        await asyncio.gather(*(task for _, task in waiting))
        assert (await client.post("/wait")).status_code == 200


async def test_a_stream_that_has_begun_doesnt_wait() -> None:
    server = Server(max_waiting_requests=1)
    leave, task = await server.begin("/output")
    server.go.set()
    async with server.client() as client:
        assert (await client.post("/wait")).status_code == 200
    leave()
    await task


@pytest.mark.parametrize("given", ["0", "-1", "nan", "1e3", "soon", "1, 2"])
async def test_a_time_that_is_none(given: str) -> None:
    async with Server().client(**{"x-kvbeacon-timeout-s": given}) as client:
        answer = await client.post("/wait")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-kvbeacon-timeout-s"


@pytest.mark.parametrize(
    ("setting", "header", "says"),
    [
        (None, None, None),
        (None, "10", "x-kvbeacon-timeout-s = 10 s"),
        (5, None, "ingress.request_timeout_s = 5 s"),
        (5, "10", "ingress.request_timeout_s = 5 s"),
        (5, "2.5", "x-kvbeacon-timeout-s = 2.5 s"),
    ],
)
async def test_the_shorter_time_holds(setting: float | None, header: str | None, says: str | None) -> None:
    headers = [] if header is None else [(b"x-kvbeacon-timeout-s", header.encode())]
    request = Request({"type": "http", "method": "POST", "path": "/wait", "headers": headers})
    visit = await Entrance(IngressConfig(request_timeout_s=setting)).admit(request)
    assert (visit.deadline and visit.deadline.given) == says
