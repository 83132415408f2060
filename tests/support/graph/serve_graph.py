"""Runs the graph as a user does: a `serve_config.yaml`, `serve run` on it, HTTP from outside.

Every graph is a Ray cluster of its own with its own ports, and `stop` leaves no process of it behind.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import yaml

from app.events.following.sync_status import CREDITED
from benchmarks.graphs.replicas import replica_pids
from tests.support.deadlines import DeadlineMissed, wait_until
from tests.support.graph.haproxy import haproxy_environment
from tests.support.graph.serve_config import REPO, Json, with_args

START_S = 240
"""Seconds within which a graph must serve: mostly imports, on two busy cores."""
STOP_S = 30
FAILURE_MARKS = ("Deploying app 'kvbeacon' failed", "Exception in Replica(")
"""What Ray prints when a graph can't be built, and when a replica can't start, which it tries for ever."""


class ServeGraph:
    """One `serve run FILE`.

    Args:
        config: the file's content.
        file_text: the file, if it isn't `config` as YAML.
        behind_haproxy: whether HAProxy is Serve's proxy.
        api_key: an operator's, where the graph wants one; `http` sends it.

    Attributes:
        config: the file's content.
        url: where HTTP is served.
        http: a client of it.
        ray_token: Ray guards every new cluster with a token from the user's home; this one has its own.
    """

    def __init__(
        self,
        config: Json,
        file_text: str | None = None,
        *,
        behind_haproxy: bool = False,
        api_key: str | None = None,
    ) -> None:
        self.config = config
        self.url = f"http://127.0.0.1:{config['http_options']['port']}"
        # Ray puts unix sockets below it, whose paths are limited to 107 characters.
        self._dir = Path(tempfile.mkdtemp(prefix="kvb-", dir="/tmp"))
        self._file = self._dir / "serve_config.yaml"
        self._file.write_text(yaml.safe_dump(config) if file_text is None else file_text)
        self._log = self._dir / "log"
        self.ray_token = secrets.token_hex(32)
        self._auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.ray_token}
        self._proxy = haproxy_environment(self._dir) if behind_haproxy else {}
        self._process: subprocess.Popen[bytes] | None = None
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self.http = httpx.Client(base_url=self.url, timeout=60, headers=headers)

    def start(self) -> None:
        """Start `serve run`, with the variables that `make serve` sets; returns at once."""
        environment = {
            **os.environ,
            "RAY_ADDRESS": "local",
            "RAY_TMPDIR": str(self._dir),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
            "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.deployments.proxy_errors:middlewares",
            **self._auth,
            **self._proxy,
        }
        command = [str(Path(sys.executable).parent / "serve"), "run", str(self._file)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=REPO, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        """Wait for every rank of every application; fails with the log's end when they will never come."""

        def becomes_ready() -> bool:
            is_ready = self.is_ready
            is_hopeless = self.has_ended or any(mark in self.output() for mark in FAILURE_MARKS)
            assert is_ready or not is_hopeless, self.output()[-6000:]
            return is_ready

        try:
            wait_until(becomes_ready, "every rank of every application", START_S, interval_s=0.2)
        except DeadlineMissed as missed:
            missed.add_note(self.output()[-6000:])
            raise

    def apply(self, config: Json) -> None:
        """Do what `serve deploy` does with a file of this content; returns at once."""
        self._applications("PUT", json=config)

    def redeploy(self, changes: Json) -> None:
        """Change the only application's `args`, as `serve deploy` of a changed file does; returns at once."""
        self.config = with_args(self.config, changes)
        self.apply(self.config)

    def status(self) -> Json:
        """What Ray says of the first application: its status, its deployments and their replicas."""
        applications: dict[str, Json] = self._applications("GET").json()["applications"]
        name = self.config["applications"][0]["name"]
        return applications.get(name, {"status": "NOT_STARTED", "deployments": {}})

    def replicas(self) -> dict[str, list[str]]:
        """The ids of every deployment's replicas that there are, also of those that start or stop."""
        deployments = self.status()["deployments"]
        return {
            name: [replica["replica_id"] for replica in each["replicas"]]
            for name, each in deployments.items()
        }

    def command(self, *words: str) -> str:
        """Run a command that finds the cluster, as a user does on its machine; what it prints."""
        environment = {**os.environ, **self._auth, "RAY_DASHBOARD_ADDRESS": self._dashboard_url()}
        ran = subprocess.run(words, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    @property
    def is_ready(self) -> bool:
        """Whether the routers of all applications know all ranks."""
        return all(map(self._is_ready, self.config["applications"]))

    def pids(self, deployment: str) -> list[int]:
        """The processes of a deployment's replicas."""
        assert self._process is not None, "not started"
        return replica_pids(deployment, self._process.pid)

    @property
    def pid(self) -> int:
        """The process of `serve run`."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the command came back."""
        assert self._process is not None, "not started"
        return self._process.poll() is not None

    def output(self) -> str:
        """What the command has printed so far."""
        return self._log.read_text(errors="replace")

    def logs(self) -> str:
        """What the command has printed so far, and everything that Ray and its processes wrote down."""
        files = [file for file in self._dir.rglob("logs/**/*") if file.is_file()]
        return self.output() + "".join(_read(file).decode(errors="replace") for file in files)

    def stop(self) -> None:
        """End it as a process manager does; what doesn't go by itself is killed."""
        self.http.close()
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        finally:
            if self._processes():
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            wait_until(lambda: not self._processes(), f"all processes of {self._dir} gone", STOP_S)
            shutil.rmtree(self._dir, ignore_errors=True)

    # What a user sees.

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        response = self.http.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    def load(self, rank: int) -> Json:
        """The load that `rank` reports."""
        load: Json = self._internal_states()[rank]["load"]
        return load

    def router_rank(self, rank: int) -> Json | None:
        """The router's view of `rank`; None if it doesn't know it."""
        return next((each for each in self.get("/router/ranks") if each["rank"] == rank), None)

    def complete(self, prompt: str | list[int], *, rank: int | None = None, **fields: Any) -> httpx.Response:
        """A text completion of 4 tokens, unless `fields` say otherwise, on `rank` if one is given."""
        body = {"prompt": prompt, "max_tokens": 4, "temperature": 0} | fields
        headers = {} if rank is None else {"X-Data-Parallel-Rank": str(rank)}
        response = self.http.post("/v1/completions", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response

    def audit(self) -> list[Json]:
        """The only router's audit of the two ranks, which finds every index equal to its cache."""
        response = self.http.get("/router/audit")
        report = response.json()
        assert (response.status_code, report["equal"], report["complete"]) == (200, True, True), report
        (router,) = report["routers"]
        for rank in router["ranks"]:
            assert (rank["verdict"], rank["num_missing"], rank["num_extra"]) == ("equal", 0, 0)
            assert rank["applied_seq"] >= rank["snapshot_seq"]
        ranks: list[Json] = router["ranks"]
        return ranks

    def wait_until_followed(self, num_ranks: int | None = None) -> None:
        """Wait until the router knows exactly as many blocks of every rank as the rank holds.

        Args:
            num_ranks: how many ranks there must be at least; by default as many as the settings say.
        """
        least = _num_ranks(self.config["applications"][0]) if num_ranks is None else num_ranks
        failure = f"the router has every rank's blocks: {self.get('/router/ranks')}"
        wait_until(lambda: self._is_followed(least), failure)

    def snapshots(self) -> dict[int, Json]:
        """Every rank's cache, as the rank itself reports it: rank → `epoch`, `seq`, `block_hashes`."""
        script = Path(__file__).with_name("rank_snapshots.py")
        application = self.config["applications"][0]["name"]
        output = subprocess.run(
            [sys.executable, str(script), self._ray_address(), application],
            cwd=REPO,
            env={**os.environ, "PYTHONPATH": str(REPO), **self._auth},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert output.returncode == 0, output.stderr[-3000:]
        return {int(rank): snapshot for rank, snapshot in json.loads(output.stdout.splitlines()[-1]).items()}

    def _is_followed(self, least: int) -> bool:
        held = {
            each["dp_rank"]: each["num_cached_blocks"]
            for each in self._internal_states()
            if each["state"] != "unreachable"
        }
        known = {
            each["rank"]: each["num_blocks"]
            for each in self.get("/router/ranks")
            if each["trust"] in CREDITED
        }
        return known == held and len(held) >= least

    def _internal_states(self) -> list[Json]:
        states: list[Json] = self.get("/server_info")["internal_states"]
        return states

    def _is_ready(self, application: Json) -> bool:
        prefix = application["route_prefix"].rstrip("/")
        try:
            response = self.http.get(f"{prefix}/router/ranks")
        except httpx.TransportError:
            return False
        if response.status_code != 200:
            return False
        settled = [each for each in response.json() if each["trust"] != "syncing"]
        return len(settled) >= _num_ranks(application)

    def _applications(self, method: str, **content: Any) -> httpx.Response:
        """What Serve's REST API answers of its applications."""
        url = f"{self._dashboard_url()}/api/serve/applications/"
        headers = {"Authorization": f"Bearer {self.ray_token}"}
        response = httpx.request(method, url, headers=headers, timeout=30, **content)
        assert response.status_code == 200, response.text
        return response

    def _dashboard_url(self) -> str:
        found = re.search("View the dashboard at .*?(http://[0-9.:]+)", self.output())
        assert found, self.output()
        return found[1]

    def _processes(self) -> list[Path]:
        """Everything that was started with this graph's environment and still runs."""
        mark = f"RAY_TMPDIR={self._dir}\0".encode()
        return [process for process in Path("/proc").glob("[0-9]*") if mark in _read(process / "environ")]

    def _ray_address(self) -> str:
        for process in self._processes():
            found = re.search(rb"--gcs-address=([^\0]+)", _read(process / "cmdline"))
            if found:
                return found[1].decode()
        raise AssertionError(f"no raylet among {self._processes()}")


def _num_ranks(application: Json) -> int:
    """How many ranks the application's settings have at least."""
    args = application["args"]
    number: int = args["autoscaling"]["min_ranks"] if "autoscaling" in args else args["dp_size"]
    return number


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
