"""Ends a service without breaking an answer: `python -m app.drain`, then `serve shutdown`.

`serve shutdown` alone breaks every open connection, since Ray ends its proxies first. This removes the
applications and leaves the proxies: no new request is taken, and those that are being answered go on for at
most `ingress.drain_timeout_s`.

    serving ──(an empty list of applications is deployed)──▶ draining ──(the last answer ends)──▶ nothing runs
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

POLL_S = 0.5
NO_APPLICATIONS: Mapping[str, Any] = {"applications": []}


def drain(client: ServeSubmissionClient, timeout_s: float) -> Iterator[str]:
    """Remove all applications; yields what still runs, each time that it has changed.

    Args:
        client: of the cluster.
        timeout_s: how long to wait for the end of the last one.

    Raises:
        TimeoutError: something still runs after `timeout_s` seconds.
        RuntimeError: the cluster refuses.
    """
    deadline = time.monotonic() + timeout_s
    client.deploy_applications(dict(NO_APPLICATIONS))
    shown = None
    while left := _running(client):
        if left != shown:
            shown = left
            yield f"still running: {left}"
        if time.monotonic() >= deadline:
            raise TimeoutError(f"not ended within {timeout_s:g} s: {left}")
        time.sleep(POLL_S)


def _running(client: ServeSubmissionClient) -> str:
    """The replicas that there are, by application and deployment; empty when no application is left."""
    return "; ".join(
        f"{name}: " + (", ".join(_replicas(application["deployments"])) or application["status"].lower())
        for name, application in client.get_serve_details()["applications"].items()
    )


def _replicas(deployments: Mapping[str, Any]) -> Iterator[str]:
    for name, deployment in deployments.items():
        if deployment["replicas"]:
            yield f"{name} {len(deployment['replicas'])}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m app.drain",
        description="Remove all Serve applications of a cluster once their answers have ended.",
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_DASHBOARD_ADDRESS", "http://localhost:8265"),
        help="of Ray's dashboard; by default RAY_DASHBOARD_ADDRESS, or %(default)s",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        help="seconds to wait for the end; then status 1, and Ray goes on with it (default: %(default)g)",
    )
    given = parser.parse_args(arguments)
    try:
        for line in drain(ServeSubmissionClient(given.address), given.timeout):
            print(line, flush=True)
    except (OSError, ValueError, RuntimeError) as error:  # TimeoutError and requests' own are OSErrors
        print(f"{given.address}: {error}", file=sys.stderr)
        return 1
    print("no application is left; `serve shutdown` ends Serve itself")
    return 0


if __name__ == "__main__":
    sys.exit(main())
