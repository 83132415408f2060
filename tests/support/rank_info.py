"""A rank as it describes itself, without a rank."""

from __future__ import annotations

from app.deployments.messages import RankInfo
from app.events.publisher_info import PublisherInfo
from app.events.schema import LoadStat

MAX_MODEL_LEN = 4096


def rank_info(rank: int, publisher: PublisherInfo | None = None) -> RankInfo:
    """A rank that is at work on node 10.0.0.5."""
    return RankInfo(
        rank=rank,
        replica_id=f"replica-{rank}",
        node_ip="10.0.0.5",
        pid=100 + rank,
        publisher=publisher,
        load=LoadStat(1, 2, 3, 4, 1, 6, 7, 8, 9, 10),
        num_blocks=50,
        num_cached_blocks=20,
        max_model_len=MAX_MODEL_LEN,
        max_prompt_tokens=MAX_MODEL_LEN - 1,
        device="cpu",
        dtype="float32",
        kernels="torch",
    )
