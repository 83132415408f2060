"""The peers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from app.simulation.config import ClusterConfig
from benchmarks.peers.dynamo import Dynamo
from benchmarks.peers.llm_d import DEFAULT, LOAD_AWARE, LlmD
from benchmarks.peers.preble import Preble
from benchmarks.peers.replay import Peer

PEERS: Final[Mapping[str, Callable[[ClusterConfig], Peer]]] = {
    "llm-d": lambda config: LlmD(DEFAULT, config.seed),
    "llm-d:load-aware": lambda config: LlmD(LOAD_AWARE, config.seed),
    "dynamo": lambda config: Dynamo(config.seed),
    "preble": lambda config: Preble(config.ranks),
}
"""Each makes the peer for a simulation; none keeps anything of another one."""
