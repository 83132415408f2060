"""How a replica that can't start says why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from app.errors import ConfigError, KvbeaconError

logger = logging.getLogger("ray.serve")

Replica = TypeVar("Replica")
Given = ParamSpec("Given")


def says_why(
    construct: Callable[Concatenate[Replica, Given], None],
) -> Callable[Concatenate[Replica, Given], None]:
    """A constructor of a deployment whose refusal is the first line of its error, and a line of the log.

    Serve puts the whole text of the error into the deployment's status. A cause without a traceback comes
    first there, in a line of its own.
    """

    @wraps(construct)
    def constructed(self: Replica, /, *args: Given.args, **kwargs: Given.kwargs) -> None:
        try:
            construct(self, *args, **kwargs)
        except KvbeaconError as error:
            logger.critical("%s can't start: %s", type(self).__name__, error)
            raise type(error)(str(error)) from error.with_traceback(None)

    return constructed


def check_num_ranks(num_replicas: int, dp_size: int) -> None:
    """Refuse more ranks than the settings have: `deployments:` in the config file can ask Serve for them.

    Raises:
        ConfigError: so it is.
    """
    if num_replicas > dp_size:
        raise ConfigError(
            f"deployments.DPRank.num_replicas = {num_replicas}: set args.dp_size, which is {dp_size}, instead"
        )
