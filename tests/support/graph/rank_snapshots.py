"""Prints, as JSON, the content of every rank's cache: `rank_snapshots.py RAY_ADDRESS APPLICATION`.

A process of its own, so that no test process ever joins a Ray cluster.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import ray
from ray import serve

from app.deployments.rank_client import RankClient
from tests.support.snapshots import parents_in

DESCRIBE_WITHIN_S = 30.0


async def snapshots_of(ranks: RankClient) -> dict[int, dict[str, Any]]:
    """Every rank's sequence number and block hashes."""
    snapshots = {}
    for info in await ranks.describe_all(timeout_s=DESCRIBE_WITHIN_S) or []:
        snapshot = await ranks.snapshot(info.replica_id)
        snapshots[info.rank] = {"seq": snapshot.seq, "block_hashes": list(parents_in(snapshot))}
    return snapshots


ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
print(json.dumps(asyncio.run(snapshots_of(RankClient(serve.get_deployment_handle("DPRank", sys.argv[2]))))))
