"""Prints, as JSON, what every rank says that its cache holds: `rank_snapshots.py RAY_ADDRESS APPLICATION`.

A process of its own, so that no test process ever joins a Ray cluster.
"""

from __future__ import annotations

import json
import sys

import msgspec
import ray
from ray import serve

ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
ranks = serve.get_deployment_handle("DPRank", sys.argv[2])
snapshots = {
    info.rank: msgspec.to_builtins(ranks.snapshot.remote(replica_id=info.replica_id).result())
    for info in ranks.broadcast("describe").results()
}
print(json.dumps(snapshots))
