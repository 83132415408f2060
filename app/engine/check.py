"""Whether an engine has what is set, and can serve a model: before anything starts, and without torch."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from app.config import AppConfig, EngineKind
from app.engine.machine_memory import gib, total_cpu_bytes, total_gpu_bytes
from app.engine.torch.model.architecture import read_architecture
from app.engine.vllm.arguments import check_installed, check_known
from app.errors import InsufficientMemoryError

_FLOAT32_BYTES = 4
_LEAST_BYTES = 2
"""Of a weight, whose format may be chosen where the rank runs: at least so much."""


def check_arguments(config: AppConfig) -> None:
    """Refuse engine arguments that the vLLM of this Python doesn't have; where there is none, ranks look.

    Raises:
        ConfigError: an argument is unknown; names the nearest.
    """
    if config.engine.vllm and find_spec("vllm") is not None:
        known = import_module("app.engine.vllm.argument_names").ENGINE_ARGUMENTS
        check_known(config.engine.vllm, known)


def check_backend(config: AppConfig) -> None:
    """Refuse a Python in which the ranks' engine can't run.

    Raises:
        ConfigError: vLLM isn't installed, or lacks an argument.
    """
    if config.engine_kind == "vllm":
        check_installed()
        check_arguments(config)


def check_architecture(model_dir: Path, kind: EngineKind) -> None:
    """Refuse a model that the ranks' engine can't serve; its weights are left to the ranks.

    vLLM knows its own models: it says at its start which it can't serve.

    Raises:
        ModelNotFoundError: no `config.json` in `model_dir`.
        UnsupportedModelError: a family or a feature that the engine doesn't have.
    """
    if kind == "torch":
        read_architecture(model_dir)


def ranks_in_memory(config: AppConfig, model_dir: Path) -> int | None:
    """How many ranks the memory of this machine holds, if nothing else is in it; None: not known.

    A cautious answer: weights and the blocks of `engine.cache.num_blocks` in the smallest format that they
    may have. GPUs aren't counted: each that Ray gives must hold a rank.

    Raises:
        InsufficientMemoryError: not one.
    """
    if config.engine_kind != "torch":  # vLLM may spread and shrink weights; workers by URL have none here
        return None
    is_gpu = config.model.device == "cuda" or (
        config.model.device == "auto" and config.resources.num_gpus > 0
    )
    total = total_gpu_bytes() if is_gpu else total_cpu_bytes()
    if total is None:
        return None
    architecture, cache = read_architecture(model_dir), config.engine.cache
    itemsize = _FLOAT32_BYTES if config.model.dtype == "float32" else _LEAST_BYTES
    weights = architecture.num_weights * itemsize
    blocks = (cache.num_blocks or 1) * cache.block_size * architecture.kv_bytes_per_token(itemsize)
    if weights + blocks <= total:
        return None if is_gpu else total // (weights + blocks)
    if weights > total:
        what = f"model.path = {config.model.path!r}: its weights need {gib(weights)}"
        remedy = "use a smaller model, or a 16-bit model.dtype"
    else:
        what = (
            f"engine.cache.num_blocks = {cache.num_blocks}: the blocks need {gib(blocks)}, "
            f"the weights {gib(weights)}"
        )
        remedy = f"at most {(total - weights) * (cache.num_blocks or 1) // blocks} blocks fit"
    owner = "a GPU" if is_gpu else "the machine"
    raise InsufficientMemoryError(f"{what} at least, and {owner} has {gib(total)} in all; {remedy}")
