"""One cluster for all tests that don't lose a machine of it: starting one takes most of a minute."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    with started(cluster_model) as running:
        yield running


@pytest.fixture
def own_cluster(cluster_model: str) -> Iterator[RayCluster]:
    """As `cluster`, which the test may break."""
    with started(cluster_model) as running:
        yield running


@contextmanager
def started(model: str, num_spare_workers: int = 0) -> Iterator[RayCluster]:
    """A cluster that runs within the context."""
    if reason := why_not():
        pytest.skip(f"no cluster of several machines here: {reason}")
    cluster = RayCluster(model, num_spare_workers=num_spare_workers)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
