"""Workers by URL: nothing is loaded, and torch isn't imported."""

from __future__ import annotations

from app.config import AppConfig
from app.engine.interface import RankEngine
from app.engine.remote.engine import RemoteEngine
from app.engine.remote.worker import Expected, RemoteRank
from app.models.context import context_length, resolve_max_model_len
from app.models.store import resolve_model, served_names


def load(config: AppConfig, dp_rank: int) -> RankEngine:
    """See `load_engine`. Whether the worker is there, and fits, shows once it is asked.

    Raises:
        ModelError: the model's folder, which has tokenizer and context, isn't to be had.
        ConfigError: `model.max_model_len` exceeds the model's context, or a file has no key.
    """
    assert config.remote_ranks is not None, config
    worker, worker_rank = config.remote_ranks.worker_of(dp_rank)
    model_dir = resolve_model(config.model, weights=False)
    scheduler = config.engine.scheduler
    expected = Expected(
        dp_size=worker.dp_size,
        model_names=frozenset((config.model.path, *served_names(config.model))),
        has_tenants=config.ingress.tenant_header is not None,
        max_model_len=resolve_max_model_len(config.model.max_model_len, context_length(model_dir)),
    )
    rank = RemoteRank(
        dp_rank=dp_rank,
        url=worker.url,
        worker_rank=worker_rank,
        expected=expected,
        model_dir=str(model_dir),
        block_size=config.engine.cache.block_size,
        max_requests=scheduler.max_running_requests + scheduler.max_waiting_requests,
        may_flush=config.remote_ranks.adopt == "flush",
        stall_timeout_s=config.engine.stall_timeout_s,
        api_key=worker.read_api_key(),
    )
    return RemoteEngine(rank)
