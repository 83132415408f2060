"""Picks the engine that a rank runs. No other is imported: a worker by URL needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from app.config import AppConfig, EngineKind
from app.engine.interface import RankEngine

_MODULES: dict[EngineKind, str] = {
    "torch": "app.engine.loading.torch_engine",
    "vllm": "app.engine.loading.vllm_engine",
    "remote": "app.engine.loading.remote_engine",
}


class _Loader(Protocol):
    """What each of these modules has."""

    def load(self, config: AppConfig, dp_rank: int) -> RankEngine: ...


def load_engine(config: AppConfig, dp_rank: int) -> RankEngine:
    """The engine of rank `dp_rank`, ready to start on the running event loop.

    Raises:
        ModelError: the model can't be served.
        ConfigError: a setting that this engine can't have, or what it needs isn't installed.
    """
    loader = cast(_Loader, import_module(_MODULES[config.engine_kind]))
    return loader.load(config, dp_rank)
