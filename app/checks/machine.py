"""What one machine can say of a start on it: the model, other files, and memory in all.

Nothing of what is taken or in use: when a service is to be replaced, that service has it.
"""

from __future__ import annotations

import os
from pathlib import Path

from app.api.access.access import check_key_files
from app.checks.plan import Plan
from app.config import AppConfig
from app.engine.check import check_architecture, check_backend, ranks_in_memory
from app.errors import ConfigError
from app.events.curve import load_rank_keys, load_router_keys
from app.models.context import context_length, resolve_max_model_len
from app.models.store import is_local, resolve_model
from app.text.tokenizer import Tokenizer


def check_model(config: AppConfig, *, weights: bool) -> Path:
    """The model's folder, fetched if it is missing. Of the weights no more is read than that they are there.

    Raises:
        ModelError: it isn't to be found, can't be fetched, or isn't supported.
        ConfigError: `model.max_model_len` exceeds its context.
    """
    folder = resolve_model(config.model, weights=weights)
    check_architecture(folder, config.engine_kind)
    if config.engine_kind != "vllm":  # it reads it of more kinds of models, and says it itself
        resolve_max_model_len(config.model.max_model_len, context_length(folder))
    Tokenizer.from_folder(folder)
    return folder


def has_python(config: AppConfig) -> bool:
    """Whether `resources.python`, if it is set, can be run here."""
    python = config.resources.python
    return python is None or (python.is_file() and os.access(python, os.X_OK))


def check_for_rank(plan: Plan) -> int | None:
    """Whether a rank could run here, in this Python; how many the memory holds, None where that isn't known.

    A Hub's model that is missing here is looked for there, but its weights are left to the ranks: only some
    of the nodes that can hold a rank will get one.

    Raises:
        ModelError, ConfigError: what a rank would raise when it starts.
    """
    config = plan.config
    check_backend(config)
    check_worker_keys(config)
    has_weights = config.remote_ranks is None and is_local(config.model)
    folder = check_model(config, weights=has_weights)
    if plan.events.config is not None and plan.events.config.curve is not None:
        load_rank_keys(plan.events.config.curve)
    return ranks_in_memory(config, folder)


def check_worker_keys(config: AppConfig) -> None:
    """Raises `ConfigError` if a file that has a worker's key can't be read, or has none."""
    for worker in () if config.remote_ranks is None else config.remote_ranks.workers:
        worker.read_api_key()


def check_for_control(plan: Plan) -> None:
    """Whether a router and an ingress could run here.

    Raises:
        ModelError, ConfigError: what one of them would raise when it starts.
    """
    check_key_files(plan.config.ingress.access)
    check_model(plan.config, weights=False)
    if plan.events.config is not None and plan.events.config.curve is not None:
        load_router_keys(plan.events.config.curve)


def check_python(plan: Plan) -> None:
    """Whether the ranks' own Python is here.

    Raises:
        ConfigError: it isn't.
    """
    if not has_python(plan.config):
        raise ConfigError(f"resources.python = {str(plan.config.resources.python)!r}: no such program")
