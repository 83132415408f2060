"""Half a minute of the soak: nothing is lost while replicas die, stop and are replaced, several at once."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import REPO

ENDS_WITHIN_S = 400
FAULTS = "kill_rank,kill_router,kill_ingress,kill_controller,stop_rank_shortly,hang_engine,redeploy"


def test_nothing_is_lost_while_several_things_break_at_once(graphs: Graphs) -> None:
    graphs.stop()  # this one is started by the benchmark
    command = [sys.executable, "-m", "benchmarks.chaos", "--minutes", "0.5", "--seed", "12"]
    command += ["--ranks", "2", "--clients", "6", "--comparable", "1", "--faults", FAULTS]
    ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=ENDS_WITHIN_S)
    assert ended.stdout, ended.stderr[-6000:]
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report["violations"] == [], ended.stderr[-6000:]
    assert ended.returncode == 0
    assert report["overlapping_faults"] > 0
    assert report["ended"]["ok"] > 0
