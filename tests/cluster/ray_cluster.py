"""A Ray cluster of several machines that serves: `ray start` on each, `serve run` on the first.

The first machine, the head, has Ray's global control store, Serve's controller and a proxy, and no room for
replicas. The workers have room for everything else, and a proxy each. One more machine, which isn't in the
cluster, is the client's.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import httpx
import ray
import yaml

from tests.cluster.machines import Machine
from tests.cluster.switch import Switch
from tests.support.deadlines import DeadlineMissed, wait_until
from tests.support.graph.serve_config import Json, merged, tiny_args, with_args

HEAD: Final = "10.77.0.1"
CLIENT: Final = "10.77.0.100"
HTTP_PORT: Final = 8000
GCS_PORT: Final = 6379
ZMQ_PORTS: Final = {"events": 5557, "loads": 5657, "replays": 5757}
"""Of rank 0; rank r has each + r."""
START_S: Final = 300.0
"""For all machines, with imports, on two busy cores."""
RAYLET: Final = str(Path(ray.__file__).parent / "core/src/ray/raylet/raylet")
"""How the command line of a node's raylet begins."""
PREFIX: Final = "kvb-cluster-"
_OBJECT_STORE: Final = str(100 * 2**20)
_BIN: Final = Path(sys.executable).parent


def worker(number: int) -> str:
    """The address of a worker, from 0."""
    return f"10.77.0.{number + 2}"


class RayCluster:
    """Machines, and what runs on them.

    Args:
        model: a folder with the model.
        num_workers: machines for replicas; each gets one rank, one router and one ingress.
        changes: to the application's `args`.
        num_spare_workers: more machines for replicas, that need none.

    Attributes:
        switch: connects the machines.
        head, client: machines.
        workers: by number.
    """

    def __init__(
        self, model: str, num_workers: int = 2, changes: Json | None = None, num_spare_workers: int = 0
    ) -> None:
        _remove_leftovers()
        # The name has this process: what it leaves behind when it crashes can be told from what is in use.
        self._dir = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/tmp"))
        self._seen_as = self._dir / "ray"
        self._seen_as.mkdir()
        self._env = {
            **os.environ,
            "RAY_TMPDIR": str(self._seen_as),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
        }
        self.config = _serve_config(model, num_workers, changes or {})
        self._serve: subprocess.Popen[bytes] | None = None
        self.switch = Switch()
        self.client = self._new_machine(CLIENT)
        self.head = self._new_machine(HEAD)
        self._num_used = num_workers
        num_machines = num_workers + num_spare_workers
        self.workers = [self._new_machine(worker(number)) for number in range(num_machines)]

    def start(self) -> None:
        """Start Ray on every machine, and the application; returns once every rank can be used."""
        settings = (f"--port={GCS_PORT}", "--num-cpus=0", "--include-dashboard=false")
        self._start_ray(self.head, "--head", f"--temp-dir={self._seen_as}", *settings)
        for machine in self.workers:
            self._join(machine)
        file = self._dir / "serve_config.yaml"
        file.write_text(yaml.safe_dump(self.config))
        self._serve = self.head.start(
            [str(_BIN / "serve"), "run", f"--address={HEAD}:{GCS_PORT}", str(file)],
            self._env,
            self._dir / "serve.log",
        )
        try:
            wait_until(self._is_ready, "every rank ready at every router", START_S, interval_s=0.5)
        except DeadlineMissed as missed:
            missed.add_note(self.output())
            raise

    def replace_worker(self, number: int) -> None:
        """A new machine with that worker's address, which joins the cluster; returns before it serves."""
        self.workers[number].stop()
        self.workers[number] = self._new_machine(worker(number))
        self._join(self.workers[number])

    def rejoin(self, number: int) -> None:
        """Start Ray once more on that machine, whose raylet has ended; returns before it serves."""
        self._join(self.workers[number])

    def drain(self, machine: Machine) -> None:
        """Tell Ray that the machine is about to go, as a cloud does that takes it away; returns at once."""
        (raylet,) = machine.pids(RAYLET)
        arguments = Path(f"/proc/{raylet}/cmdline").read_text().split("\0")
        node_id = next(each.partition("=")[2] for each in arguments if each.startswith("--node_id="))
        command = [str(_BIN / "ray"), "drain-node", f"--address={HEAD}:{GCS_PORT}", f"--node-id={node_id}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=a test"]
        log = self._dir / "drain.log"
        code = machine.start(command, self._env, log).wait(START_S)
        assert code == 0, log.read_text(errors="replace")

    def deploy(self, changes: Json) -> None:
        """Deploy the application with these changes to its `args`; returns once it is whole."""
        file = self._dir / "changed.yaml"
        file.write_text(yaml.safe_dump(with_args(self.config, changes)))
        command = [str(_BIN / "serve"), "run", f"--address={HEAD}:{GCS_PORT}", "--non-blocking", str(file)]
        log = self._dir / "deploy.log"
        code = self.head.start(command, self._env, log).wait(START_S)
        assert code == 0, log.read_text(errors="replace")

    def stop(self) -> None:
        """End everything, and remove all files."""
        for machine in (*self.workers, self.head, self.client):
            machine.stop()
        if self._serve is not None:
            self._serve.wait()
        self.switch.stop()
        shutil.rmtree(self._dir, ignore_errors=True)

    def output(self) -> str:
        """The end of what `serve run` has printed so far."""
        return (self._dir / "serve.log").read_text(errors="replace")[-6000:]

    def url(self, machine: Machine) -> str:
        """Where that machine's proxy answers."""
        return f"http://{machine.address}:{HTTP_PORT}"

    def get(self, path: str, machine: Machine, timeout_s: float = 30.0) -> httpx.Response:
        """The answer at that machine's proxy, asked from the client's machine."""
        return self.client.call(lambda: httpx.get(self.url(machine) + path, timeout=timeout_s))

    def wait_until_settled(self, machine: Machine, within_s: float) -> None:
        """Wait until, as that machine's ingress says, every router has every rank's blocks."""
        num = self._num_used
        last: Json = {}

        def is_settled() -> bool:
            nonlocal last
            last = self.audit(machine)
            compared = [len(router["ranks"]) for router in last.get("routers", [])]
            return compared == [num] * num and last["equal"] is True

        wait_until(is_settled, lambda: last, within_s, interval_s=0.5)

    def audit(self, machine: Machine) -> Json:
        """Every router's audit of every rank, as that machine's ingress gives it."""
        report: Json = self.get("/router/audit", machine, timeout_s=90).json()
        return report

    def kill(self, machine: Machine, title: str) -> None:
        """Kill -9 the machine's processes with this title, as `ray::ServeController`."""
        pids = machine.pids(title)
        assert pids, f"no {title} at {machine.address}"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def _new_machine(self, address: str) -> Machine:
        return Machine(address, self._dir / address, self._seen_as, self.switch)

    def _join(self, machine: Machine) -> None:
        self._start_ray(machine, f"--address={HEAD}:{GCS_PORT}", "--num-cpus=2")

    def _start_ray(self, machine: Machine, *arguments: str) -> None:
        log = self._dir / f"{machine.address}.log"
        command = [
            str(_BIN / "ray"),
            "start",
            f"--node-ip-address={machine.address}",
            f"--object-store-memory={_OBJECT_STORE}",
            *arguments,
        ]
        code = machine.start(command, self._env, log).wait(START_S)
        assert code == 0, log.read_text(errors="replace")

    def _is_ready(self) -> bool:
        try:
            answers = [self.get("/router/ranks", machine) for machine in self.workers]
        except httpx.TransportError:
            return False
        dp_size = self.config["applications"][0]["args"]["dp_size"]
        return all(answer.status_code == 200 and _num_exact(answer.json()) == dp_size for answer in answers)


def _num_exact(ranks: list[Json]) -> int:
    return sum(rank["trust"] == "exact" for rank in ranks)


def _serve_config(model: str, num_workers: int, changes: Json) -> Json:
    settings: Json = {
        "dp_size": num_workers,
        "engine": {"scheduler": {"max_running_requests": 16, "max_waiting_requests": 200}},
        "resources": {"num_cpus": 0.2, "max_ranks_per_node": 1},
        "routing": {"num_routers": num_workers, "max_routers_per_node": 1},
        "ingress": {"num_ingresses": num_workers, "max_ingresses_per_node": 1},
        "kv_events_config": {
            "publisher": "zmq",
            "endpoint": f"tcp://*:{ZMQ_PORTS['events']}",
            "load_publish_endpoint": f"tcp://*:{ZMQ_PORTS['loads']}",
            "replay_endpoint": f"tcp://*:{ZMQ_PORTS['replays']}",
            "topic": "kv",
        },
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": HTTP_PORT},
        "applications": [
            {
                "name": "kvbeacon",
                "route_prefix": "/",
                "import_path": "app.build:build_app",
                "args": merged(merged(tiny_args(model), settings), changes),
            }
        ],
    }


def _remove_leftovers() -> None:
    """Files of earlier runs whose process is gone; its machines ended with it."""
    for folder in Path("/tmp").glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)
