"""A graph whose settings are changed while it runs: a new graph for each would take minutes."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.deadlines import wait_until
from tests.support.graph.serve_config import Json, merged
from tests.support.graph.serve_graph import ServeGraph

MISCONFIGURED = "KV events are misconfigured"


@dataclass(frozen=True)
class Answer:
    """The server's answers while its application had these `args`."""

    args: Json
    status: int
    info: Json
    alias: Json


class ReconfigurableGraph(ServeGraph):
    """One application whose settings are changed through Serve's REST API while it runs."""

    def __init__(self, config: Json) -> None:
        super().__init__(config)
        self._num_blocks = config["applications"][0]["args"]["engine"]["cache"]["num_blocks"]

    def answer_with(self, kv_events_config: str | Json | None) -> Answer:
        """The answer of `/server_info` once rank and ingress have this `kv_events_config`."""
        # A number that only these settings have: a part that reports it has taken them.
        self._num_blocks += 1
        changes = {
            "kv_events_config": kv_events_config,
            "engine": {"cache": {"num_blocks": self._num_blocks}},
        }
        args = merged(self.config["applications"][0]["args"], changes)
        self.deploy(args)
        wait_until(self._is_in_force, f"{kv_events_config!r} in force")
        response = self.http.get("/server_info")
        return Answer(args, response.status_code, response.json(), self.get("/get_server_info"))

    def deploy(self, args: Json, *more: Json) -> None:
        """Give `args` to the application's deployments, and start the applications `more` beside it."""
        (application,) = self.config["applications"]
        deployments = [{"name": name, "user_config": args} for name in ("DPRank", "Ingress")]
        applications = [{**application, "deployments": deployments}, *more]
        self.apply({**self.config, "applications": applications})

    def misconfigurations(self) -> list[str]:
        """The lines of the log that say that KV events are misconfigured."""
        return [line for line in self.output().splitlines() if MISCONFIGURED in line]

    def _is_in_force(self) -> bool:
        info = self.get("/server_info")
        in_rank = info["internal_states"][0].get("num_blocks")
        return {info["config"]["engine"]["cache"]["num_blocks"], in_rank} == {self._num_blocks}
