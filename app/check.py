"""Checks a `serve_config.yaml` and fetches its model before anything is started: `python -m app.check FILE`.

`serve run` hands a config file to Ray's controller and stays up even when nothing starts; a mistake is one
line in its log. This says the same at once, exits with status 1, and also tries the ports. `make serve` runs
it first, and so shows the fetch's progress bar.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from app.api.access.access import check_key_files as check_api_keys
from app.checks.machine import check_model, check_worker_keys, has_python
from app.checks.overrides import check_overrides
from app.checks.plan import Plan, make_plan
from app.engine.check import check_arguments
from app.errors import ConfigError, EndpointInUseError, KvbeaconError
from app.events.curve import check_key_files
from app.events.endpoints import Endpoint, rank_endpoints
from app.events.ports import is_interface
from app.redaction import redacted

logger = logging.getLogger(__name__)

IMPORT_PATH = "app.build:build_app"


def check(file: Path, *, is_redeploy: bool = False) -> None:
    """Goes through settings, ports and models as the start will; fetches a missing model.

    Devices and memory are left to the ranks, which may be on other machines.

    Args:
        file: a Ray Serve config file.
        is_redeploy: whether a service runs that it is to replace: that one has the ports still.

    Raises:
        ConfigError: the file can't be read, isn't YAML, a setting in it is wrong, an option of Serve's
            contradicts ours, two parts need one port, a file of API keys isn't one, or another key file that
            is readable here isn't what it must be.
        ModelError: a model isn't to be found, can't be fetched, or isn't supported.
        EndpointInUseError: a port that HTTP or a rank needs is taken on this machine.
    """
    schema = _read(file)
    applications = [each for each in schema.applications if each.import_path == IMPORT_PATH]
    if not applications:
        raise ConfigError(f"applications: none has the import_path {IMPORT_PATH}")
    for application in applications:
        check_overrides(application)
    plans = [make_plan(application.args) for application in applications]
    ports = _Ports(are_free=not is_redeploy)
    ports.take("HTTP", schema.http_options.host, schema.http_options.port)
    for plan in plans:
        for rank, endpoint, port in _endpoints(plan):
            ports.take(f"rank {rank}", endpoint.host, port)
    for plan in plans:
        check_worker_keys(plan.config)
        if not has_python(plan.config):
            python = plan.config.resources.python
            logger.warning("resources.python = %s can't be run here: the ranks' machines need it", python)
        elif plan.config.resources.python is None:
            check_arguments(plan.config)
        check_api_keys(plan.config.ingress.access)
        check_model(plan.config, weights=plan.config.remote_ranks is None)


def _read(file: Path) -> ServeDeploySchema:
    try:
        content = yaml.safe_load(file.read_text())
        return ServeDeploySchema.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(str(error)) from None
    except ValidationError as error:
        detail = error.errors()[0]
        field = ".".join(str(part) for part in detail["loc"]) or "the file"
        raise ConfigError(f"{field} = {redacted(detail['input'])!r}: {detail['msg']}") from None


def _endpoints(plan: Plan) -> Iterator[tuple[int, Endpoint, int]]:
    """Every tcp address that some rank binds, with its port, but for those that the system chooses."""
    config, events = plan.config, plan.events
    events.log(logger)
    if events.config is None:
        return
    if events.config.curve is not None:
        for path in check_key_files(events.config.curve):
            logger.warning("%s isn't readable here: ranks and routers look at it when they start", path)
    for rank in range(config.largest_dp_size):
        opened = rank_endpoints(events.config, rank, config.largest_dp_size)
        for endpoint in (opened.events, opened.replay, opened.load):
            if endpoint is not None and endpoint.binds and endpoint.port:  # 0 is any free one
                yield rank, endpoint, endpoint.port


class _Ports:
    """The ports that have an owner so far; `are_free`: none of them may be taken on this machine."""

    def __init__(self, *, are_free: bool) -> None:
        self._are_free = are_free
        self._owner_of: dict[int, str] = {}

    def take(self, who: str, host: str, port: int) -> None:
        """Give `port` to `who`, if it has no other owner, in the file or on this machine."""
        if port in self._owner_of:
            owner = self._owner_of[port]
            raise ConfigError(f"port {port}: {owner} and {who} both need it; give one of them another")
        if self._are_free:
            _try_port(who, host, port)
        self._owner_of[port] = who


def _try_port(who: str, host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # An interface has as many addresses as it likes: any of the machine's stands for them.
    address = "" if host == "*" or is_interface(host) else host.strip("[]")
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise EndpointInUseError(f"{who} can't bind {host}:{port}: {error.strerror}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m app.check", description="Check a Ray Serve config file.")
    parser.add_argument("file", type=Path, nargs="?", default=Path("serve_config.yaml"))
    parser.add_argument("--redeploy", action="store_true", help="a service that runs now has the ports still")
    given = parser.parse_args(arguments)
    file = given.file
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        check(file, is_redeploy=given.redeploy)
    except KvbeaconError as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 1
    print(f"{file}: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
