"""Torch engines on a tiny model's weights, in float32 on the cpu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.engine.torch.engine import Engine
from app.settings.engine import EngineConfig

BLOCK = 4


def tiny_engine(
    model_dir: Path,
    *,
    num_blocks: int = 64,
    block_size: int = BLOCK,
    scheduler: dict[str, int] | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> Engine:
    """An engine for the model in `model_dir`, with a cache of `num_blocks` blocks.

    Args:
        scheduler: settings under `engine.scheduler`.
        settings: other settings under `engine`.
        options: further arguments of `Engine.load`.
    """
    cache = {"block_size": block_size, "num_blocks": num_blocks}
    config = EngineConfig.model_validate({"cache": cache, "scheduler": scheduler or {}, **(settings or {})})
    return Engine.load(model_dir, config, device="cpu", dtype="float32", **options)
