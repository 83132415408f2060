"""How a replica that can't start says why."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import ConfigError, KvbeaconError

logger = logging.getLogger("ray.serve")


@contextmanager
def says_why(name: str) -> Iterator[None]:
    """Around what a deployment's constructor does. No decorator: Ray couldn't pickle the ingress with it.

    A refusal becomes the first line of its error, and a line of the log. Serve puts the whole text of the
    error into the deployment's status, where a cause without a traceback comes first, in a line of its own.
    """
    try:
        yield
    except KvbeaconError as error:
        logger.critical("%s can't start: %s", name, error)
        raise type(error)(str(error)) from error.with_traceback(None)


def check_num_ranks(num_replicas: int, dp_size: int) -> None:
    """Refuse more ranks than the settings have: `deployments:` in the config file can ask Serve for them.

    Raises:
        ConfigError: so it is.
    """
    if num_replicas > dp_size:
        raise ConfigError(
            f"deployments.DPRank.num_replicas = {num_replicas}: set args.dp_size, which is {dp_size}, instead"
        )
