"""The graph under test: deployed and changed through Serve's REST API, as `serve deploy` does it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from app.config import load_config
from benchmarks.chaos.processes import pids_of
from benchmarks.chaos.requests import TENANT_HEADER
from benchmarks.engine.narrow_model import write_served_model
from benchmarks.graphs.graph import APP_NAME, HOST, free_ports, running_ray, with_policy

VOCAB = 49_152
"""The tokenizer's own, so that answers are texts and grammars have their tokens."""
LAYERS = 12
"""Enough that a step takes milliseconds: streams last."""
SPREAD = 0.2
"""Of the weights: wide enough that no two tokens are nearly as likely."""
REMEMBERED = 50
"""Decisions that a router remembers: few, so that what they take doesn't look like growth."""
REMEMBERED_BLOCKS = 1000
"""And blocks that it remembers to say why others were missed."""
STALL_TIMEOUT_S = 3.0
READY_WITHIN_S = 240.0
ANSWER_WITHIN_S = 10.0
AUDITED_WITHIN_S = 30.0
DEPLOY_WITHIN_S = 60.0
"""Within this Serve must take a deploy: its controller may just be starting again."""
POLL_S = 0.25

Json = dict[str, Any]


class GraphError(Exception):
    """The graph didn't do what it must. The message says what."""


def graph_args(folder: Path, *, ranks: int, routers: int, ingresses: int, max_ranks: int) -> Json:
    """`args` of a graph of a tiny random model in float32, its weights written below `folder`."""
    model = write_served_model(folder / "model", LAYERS, vocab=VOCAB, spread=SPREAD, tied=False)
    args = {
        "dp_size": ranks,
        "model": {"path": str(model), "served_name": "tiny", "dtype": "float32"},
        "engine": {
            "kernels": "torch",
            "cache": {"num_blocks": 512},
            "scheduler": {"max_running_requests": 6, "max_waiting_requests": 1000},
            "stall_timeout_s": STALL_TIMEOUT_S,
            "drain_timeout_s": 3.0,
        },
        "resources": {"num_cpus": 0.1},
        "routing": {
            "num_routers": routers,
            "remembered_decisions": REMEMBERED,
            "misses": {"remembered_blocks": REMEMBERED_BLOCKS},
        },
        "ingress": {"num_ingresses": ingresses, "tenant_header": TENANT_HEADER},
    }
    return with_policy(args, "predicted_ttft", max_ranks)


class Graph:
    """The running graph.

    Attributes:
        url: where it serves HTTP.
        args: what it should have been deployed with by now.
        seen: what `is_whole` saw last, for people to read.
    """

    def __init__(self, url: str, dashboard_url: str, args: Json) -> None:
        self.url = url
        self.args = args
        self.seen = ""
        self._dashboard = httpx.AsyncClient(
            base_url=dashboard_url, headers=_ray_authorization(), timeout=ANSWER_WITHIN_S
        )
        self._http = httpx.AsyncClient(base_url=url, timeout=ANSWER_WITHIN_S)

    @property
    def num_ranks(self) -> int:
        """Ranks that there should be."""
        size: int = self.args["dp_size"]
        return size

    @property
    def num_routers(self) -> int:
        """Routers that there should be."""
        number: int = self.args["routing"]["num_routers"]
        return number

    @property
    def num_ingresses(self) -> int:
        """Ingresses that there should be."""
        number: int = self.args["ingress"]["num_ingresses"]
        return number

    async def close(self) -> None:
        """Close the connections."""
        await self._dashboard.aclose()
        await self._http.aclose()

    async def deploy(self, args: Mapping[str, Any] | None) -> None:
        """Have Serve deploy the application with these `args`, or no application. Returns once it is told.

        Raises:
            GraphError: Serve takes no deploy within `DEPLOY_WITHIN_S`.
        """
        application = {
            "name": APP_NAME,
            "route_prefix": "/",
            "import_path": "app.build:build_app",
            "args": args,
        }
        where = urlsplit(self.url)
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": where.hostname, "port": where.port},
            "applications": [] if args is None else [application],
        }
        last = ""

        async def is_taken() -> bool:
            nonlocal last
            try:
                response = await self._dashboard.put("/api/serve/applications/", json=config)
            except httpx.HTTPError as error:
                last = repr(error)
                return False
            last = f"{response.status_code} {response.text[-500:]}"
            return response.status_code == httpx.codes.OK

        await self.until(is_taken, lambda: f"Serve took no deploy: {last}", DEPLOY_WITHIN_S)

    async def status(self) -> tuple[str, str]:
        """The application's status and message, by Serve; two empty ones while that doesn't answer."""
        try:
            response = await self._dashboard.get("/api/serve/applications/")
            application = response.raise_for_status().json()["applications"].get(APP_NAME)
        except httpx.HTTPError:
            return "", ""
        return (application["status"], application["message"]) if application else ("NOT_THERE", "")

    async def ready_ranks(self) -> list[int]:
        """The processes of the ranks that take requests, as an ingress sees them; none when none answers."""
        states = (await self.get("/server_info") or {}).get("internal_states", [])
        living = set(pids_of("DPRank"))
        return sorted(each["pid"] for each in states if each["state"] == "ready" and each["pid"] in living)

    async def get(self, path: str) -> Any:
        """The JSON at `path`; None when it isn't answered with 200."""
        try:
            response = await self._http.get(path)
        except httpx.HTTPError:
            return None
        return response.json() if response.status_code == httpx.codes.OK else None

    async def audit(self) -> tuple[bool, str]:
        """Whether every router's index is equal to every rank's cache, and the whole answer."""
        try:
            response = await self._http.get("/router/audit", timeout=AUDITED_WITHIN_S)
        except httpx.HTTPError as error:
            return False, repr(error)
        if response.status_code != httpx.codes.OK:
            return False, f"{response.status_code} {response.text}"
        report = response.json()
        return report["equal"] is True and len(report["routers"]) == self.num_routers, response.text

    async def is_whole(self) -> bool:
        """Whether as many replicas are there as there should be, and all ranks are ready."""
        counts = {kind: len(pids_of(kind)) for kind in ("Router", "Ingress", "DPRank")}
        wanted = {"Router": self.num_routers, "Ingress": self.num_ingresses, "DPRank": self.num_ranks}
        num_ready = len(await self.ready_ranks())
        self.seen = f"{counts}, wanted {wanted}; {num_ready} ranks ready"
        return counts == wanted and num_ready == self.num_ranks

    async def until(
        self, condition: Callable[[], Awaitable[bool]], failure: Callable[[], str], timeout_s: float
    ) -> None:
        """Wait until `condition` is true.

        Raises:
            GraphError: it isn't within `timeout_s`; the message is what `failure` returns then.
        """
        deadline = time.monotonic() + timeout_s
        while not await condition():
            if time.monotonic() > deadline:
                raise GraphError(f"not within {timeout_s:.0f} s: {failure()}")
            await asyncio.sleep(POLL_S)


@contextmanager
def running_graph(args: Json) -> Iterator[Graph]:
    """A Ray cluster for a graph that is to be deployed; ended with the context."""
    dashboard_port = free_ports(1)
    with running_ray(load_config(args), spare_cpus=16, dashboard_port=dashboard_port) as url:
        yield Graph(url, f"http://{HOST}:{dashboard_port}", args)


def _ray_authorization() -> dict[str, str]:
    """What Ray's dashboard wants to see: the user's token, if there is one: `ray.init` guards with it.

    See https://docs.ray.io/en/latest/ray-security/token-auth.html.
    """
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    token = os.environ.get("RAY_AUTH_TOKEN") or (file.read_text().strip() if file.exists() else "")
    return {"Authorization": f"Bearer {token}"} if token else {}
