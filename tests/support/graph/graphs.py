"""Graphs that several tests share: starting one takes long."""

from __future__ import annotations

from tests.support.graph.serve_config import Json, serve_config
from tests.support.graph.serve_graph import ServeGraph


class Graphs:
    """Starts graphs, one at a time: there may be no more than two cores."""

    def __init__(self) -> None:
        self._started: tuple[dict[str, Json], bool] | None = None
        self._graph: ServeGraph | None = None

    def get(
        self, applications: dict[str, Json], *, behind_haproxy: bool = False, api_key: str | None = None
    ) -> ServeGraph:
        """A running graph of these applications: the last one, if that has the same."""
        wanted = (applications, behind_haproxy)
        if wanted != self._started or self._graph is None:
            self.stop()
            config = serve_config(applications)
            self._graph = ServeGraph(config, behind_haproxy=behind_haproxy, api_key=api_key)
            self._graph.start()
            self._graph.wait_until_ready()
            self._started = wanted
        return self._graph

    def stop(self) -> None:
        """End the graph that runs, if one does."""
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.stop()
