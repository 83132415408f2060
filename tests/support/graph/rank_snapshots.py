"""Prints, as JSON, the content of every rank's cache: `rank_snapshots.py RAY_ADDRESS APPLICATION`.

A process of its own, so that no test process ever joins a Ray cluster.
"""

from __future__ import annotations

import json
import sys

import ray
from ray import serve

from tests.support.snapshots import parents_in

ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
ranks = serve.get_deployment_handle("DPRank", sys.argv[2])
snapshots = {}
for info in ranks.broadcast("describe").results():
    snapshot = ranks.snapshot.remote(replica_id=info.replica_id).result()
    snapshots[info.rank] = {"seq": snapshot.seq, "block_hashes": list(parents_in(snapshot))}
print(json.dumps(snapshots))
