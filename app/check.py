"""Checks a `serve_config.yaml` and fetches its model before anything is started: `python -m app.check FILE`.

`serve run` hands a config file to Ray's controller and stays up even when nothing starts; a mistake is one
line in its log. This says the same at once, exits with status 1, and also tries the ports. `make serve` runs
it first, and so shows the fetch's progress bar.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from app.config import AppConfig, load_config
from app.engine.check import check_engine, check_model
from app.errors import ConfigError, EndpointInUseError, KvbeaconError
from app.events.curve import check_key_files
from app.events.endpoints import Endpoint, parse_kv_events, rank_endpoints
from app.events.ports import is_interface
from app.models.context import context_length, resolve_max_model_len
from app.models.store import resolve_model
from app.redaction import redacted
from app.routing.policies.registry import POLICIES
from app.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

IMPORT_PATH = "app.build:build_app"


def check(file: Path) -> None:
    """Goes through settings, ports and models as the start will; fetches a missing model.

    Devices and memory are left to the ranks, which may be on other machines.

    Raises:
        ConfigError: the file can't be read, isn't YAML, a setting in it is wrong, two parts need one port, or
            a key file that is readable here isn't what it must be.
        ModelError: a model isn't to be found, can't be fetched, or isn't supported.
        EndpointInUseError: a port that HTTP or a rank needs is taken on this machine.
    """
    schema = _read(file)
    applications = [each for each in schema.applications if each.import_path == IMPORT_PATH]
    if not applications:
        raise ConfigError(f"applications: none has the import_path {IMPORT_PATH}")
    configs = [load_config(application.args, policies=POLICIES) for application in applications]
    ports = _Ports()
    ports.take("HTTP", schema.http_options.host, schema.http_options.port)
    for config in configs:
        for rank, endpoint, port in _endpoints(config):
            ports.take(f"rank {rank}", endpoint.host, port)
    for config in configs:
        _look_for_python(config)
        check_engine(config)
        _check_model(config)


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


def _endpoints(config: AppConfig) -> Iterator[tuple[int, Endpoint, int]]:
    """Every tcp address that some rank binds, with its port, but for those that the system chooses."""
    events = parse_kv_events(config)
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


def _look_for_python(config: AppConfig) -> None:
    python = config.resources.python
    if python is not None and not (python.is_file() and os.access(python, os.X_OK)):
        logger.warning("resources.python = %s can't be run here: the ranks' machines need it", python)


def _check_model(config: AppConfig) -> None:
    """Reads what is small of the model; the weights are left to the ranks, or to workers by URL."""
    folder = resolve_model(config.model, weights=config.remote_ranks is None)
    check_model(folder, config.engine_kind)
    if config.engine_kind != "vllm":  # it reads it of more kinds of models, and says it itself
        resolve_max_model_len(config.model.max_model_len, context_length(folder))
    Tokenizer.from_folder(folder)


class _Ports:
    """The ports that have an owner so far."""

    def __init__(self) -> None:
        self._owner_of: dict[int, str] = {}

    def take(self, who: str, host: str, port: int) -> None:
        """Give `port` to `who`, if it has no other owner, in the file or on this machine."""
        if port in self._owner_of:
            owner = self._owner_of[port]
            raise ConfigError(f"port {port}: {owner} and {who} both need it; give one of them another")
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
    file = parser.parse_args(arguments).file
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        check(file)
    except KvbeaconError as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 1
    print(f"{file}: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
