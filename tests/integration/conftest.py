"""Graphs that the integration tests share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import tiny_args
from tests.support.graph.serve_graph import ServeGraph

TOOLS_IN_TEMPLATE = (
    "{% if tools %}Tools:{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for message in messages %}{% for call in message.tool_calls %}<tool_call>"
    "{{ call.function | tojson }}</tool_call>\n{% endfor %}{% endfor %}"
)
"""Before a template that knows no tools: these, in Hermes' form, and the calls so far."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a graph run in a row, also across files: starting one takes long."""
    items.sort(key=_graph_number)


def _graph_number(item: pytest.Item) -> int:
    if not item.path.is_relative_to(Path(__file__).parent):
        return -1
    shared = ("tiny_graph", "smollm2_graph")
    names = item.fixturenames if isinstance(item, pytest.Function) else ()
    return next((number for number, name in enumerate(shared) if name in names), len(shared))


@pytest.fixture(scope="session")
def graphs() -> Iterator[Graphs]:
    graphs = Graphs()
    yield graphs
    graphs.stop()


@pytest.fixture(scope="session")
def tiny_model(new_tiny_llama: Callable[..., Path], smollm2_dir: Path) -> str:
    """A folder with a narrow random model and the default model's tokenizer; its template can write tools.

    Its many layers make a step take some milliseconds: streams last, and an ingress can keep up with them.
    """
    folder = new_tiny_llama(vocab_size=49152, max_position_embeddings=8192, num_hidden_layers=16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_dir / name, folder)
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    (folder / "chat_template.jinja").write_text(f"{TOOLS_IN_TEMPLATE}{template}")
    return str(folder)


@pytest.fixture
def smollm2_graph(graphs: Graphs, smollm2_dir: Path) -> ServeGraph:
    """Two ranks of the default model, in the number format whose greedy answers are the same on every CPU."""
    return graphs.get({"/": {"model": {"dtype": "float32"}}})


@pytest.fixture
def tiny_graph(graphs: Graphs, tiny_model: str) -> ServeGraph:
    """Two ranks of a tiny model with small caches, batches and queues, which fill quickly."""
    return graphs.get({"/": tiny_args(tiny_model)})


@pytest.fixture
def new_tiny_graph(graphs: Graphs, tiny_model: str) -> Iterator[ServeGraph]:
    """As `tiny_graph` with queues that never fill and patience for a rank's return; the test may break it."""
    args = tiny_args(tiny_model)
    args["ingress"] = {"rank_wait_s": 90}
    args["engine"]["scheduler"]["max_waiting_requests"] = 10_000
    yield graphs.get({"/": args})
    graphs.stop()
