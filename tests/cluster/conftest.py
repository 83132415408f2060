"""One cluster for all tests that don't lose a machine of it: starting one takes most of a minute."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.machines import why_not
from tests.cluster.ray_cluster import RayCluster


@pytest.fixture(scope="package")
def cluster_model(new_tiny_llama: Callable[..., Path], smollm2_dir: Path) -> str:
    """A folder with a small random model and the default model's tokenizer."""
    folder = new_tiny_llama(vocab_size=49152, max_position_embeddings=8192, num_hidden_layers=4)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_dir / name, folder)
    return str(folder)


@pytest.fixture(scope="package")
def cluster(cluster_model: str) -> Iterator[RayCluster]:
    """Two workers with one rank, one router and one ingress each. A test leaves it as it was."""
    yield from started(cluster_model)


@pytest.fixture
def own_cluster(cluster_model: str) -> Iterator[RayCluster]:
    """As `cluster`, which the test may break."""
    yield from started(cluster_model)


def started(model: str) -> Iterator[RayCluster]:
    """A cluster that runs, until the generator is closed."""
    if reason := why_not():
        pytest.skip(f"no cluster of several machines here: {reason}")
    cluster = RayCluster(model)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
