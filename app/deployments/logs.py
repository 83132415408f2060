"""What our own packages log goes where Ray Serve's logs go."""

from __future__ import annotations

import logging

RAY_LOGGER = logging.getLogger("ray.serve")
PACKAGES = ("app", "kernels")


def log_with_ray() -> None:
    """Give our packages' loggers the replica's handlers and level: without them only warnings are logged."""
    for name in PACKAGES:
        own = logging.getLogger(name)
        own.handlers = list(RAY_LOGGER.handlers)
        own.setLevel(RAY_LOGGER.getEffectiveLevel())
        own.propagate = False
