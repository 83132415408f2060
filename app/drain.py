"""Ends a service without breaking an answer: `python -m app.drain`, then `serve shutdown`.

`serve shutdown` alone breaks every open connection, since Ray ends its proxies first. This removes the
applications and leaves the proxies: no new request is taken, and those that are being answered go on for at
most `ingress.drain_timeout_s`.

    serving ──(an empty list of applications is deployed)──▶ draining ──(the last answer ends)──▶ nothing runs
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence

from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

POLL_S = 0.5


def drain(client: ServeSubmissionClient, timeout_s: float) -> None:
    """Remove all applications; returns once the last answer has ended.

    Args:
        client: of the cluster.
        timeout_s: how long to wait for that.

    Raises:
        TimeoutError: some application still runs after `timeout_s` seconds; Ray goes on with removing it.
        RuntimeError: the cluster refuses.
    """
    deadline = time.monotonic() + timeout_s
    client.deploy_applications({"applications": []})
    while left := client.get_serve_details()["applications"]:
        if time.monotonic() >= deadline:
            raise TimeoutError(f"after {timeout_s:g} s not all answers of {', '.join(left)} have ended")
        time.sleep(POLL_S)


def seconds(given: str) -> float:
    """A time on a command line. Raises `ValueError` for what is none, as `argparse` wants it."""
    value = float(given)
    if not 0 <= value < math.inf:
        raise ValueError(given)
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m app.drain",
        description="Remove all Serve applications of a cluster once their answers have ended.",
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_DASHBOARD_ADDRESS", "http://localhost:8265"),
        help="of Ray's dashboard; by default RAY_DASHBOARD_ADDRESS, or else http://localhost:8265",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=600.0,
        help="seconds to wait for the last answer's end; then the exit status is 1 (default: %(default)g)",
    )
    given = parser.parse_args(arguments)
    print("removing all applications; waiting until their last answers have ended", flush=True)
    try:
        drain(ServeSubmissionClient(given.address), given.timeout)
    except (OSError, ValueError, RuntimeError) as error:  # TimeoutError and those of `requests` are OSErrors
        print(f"{given.address}: {error}", file=sys.stderr)
        return 1
    print("no application is left; `serve shutdown` ends Serve itself")
    return 0


if __name__ == "__main__":
    sys.exit(main())
