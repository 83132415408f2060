"""Graphs that several tests share: starting one takes long."""

from __future__ import annotations

from tests.support.graph.serve_config import Json, serve_config
from tests.support.graph.serve_graph import ServeGraph


class Graphs:
    """Starts graphs, one at a time: there may be no more than two cores."""

    def __init__(self) -> None:
        self._applications: dict[str, Json] | None = None
        self._graph: ServeGraph | None = None

    def get(self, applications: dict[str, Json]) -> ServeGraph:
        """A running graph of these applications: the last one, if that has the same."""
        if applications != self._applications or self._graph is None:
            self.stop()
            self._graph = ServeGraph(serve_config(applications))
            self._graph.start()
            self._graph.wait_until_ready()
            self._applications = applications
        return self._graph

    def stop(self) -> None:
        """End the graph that runs, if one does."""
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.stop()
