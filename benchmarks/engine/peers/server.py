"""The loop of a peer's process: a JSON object per line in, one out. Standard library only.

    {"prompts": [[token ids], …], "max_tokens": n}  →  {"seconds": s}

The parent keeps every peer's process from the first round to the last, so that loading is not timed, and
lets one of them work at a time. What a peer prints goes to standard error; the answers have a pipe of
their own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

Generate = Callable[[list[list[int]], int], None]
"""Answers all prompts at once, greedily, with exactly so many tokens each."""


def serve(load: Callable[[], Generate]) -> None:
    """Load, say so, then time what is asked for until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    generate = load()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        generate(request["prompts"], request["max_tokens"])
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)
