"""A cluster's configuration, from YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import ConfigError
from app.simulation.config import read_cluster


def test_a_cluster_is_read_from_yaml_and_its_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("ranks: 3\nrank: {num_blocks: 10, decode: {}}\n")
    cluster = read_cluster(file)
    assert (cluster.ranks, cluster.rank.num_blocks, cluster.rank.block_size) == (3, 10, 512)
    assert cluster.rank.decode is not None
    file.write_text("rank: {blocks: 10}")
    with pytest.raises(ConfigError, match=r"rank\.blocks: unknown key; allowed here: prefill_tokens_per_s"):
        read_cluster(file)
    file.write_text("feed: {event_loss: 1}")
    with pytest.raises(ConfigError, match=r"feed\.event_loss = 1: Input should be less than 1"):
        read_cluster(file)
    with pytest.raises(ConfigError, match="No such file"):
        read_cluster(tmp_path / "none.yaml")
