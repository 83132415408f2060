"""The one place where an engine is put together: model, tokenizer, grammars, threads.

So it is the only one of `app.engine` that fetches models and knows `app.text`.
"""

from __future__ import annotations

import torch

from app.config import AppConfig
from app.engine.interface import RankEngine
from app.engine.torch.engine import Engine
from app.engine.torch.engine_thread import EngineThread
from app.models.store import resolve_model
from app.text.grammar import GrammarCompiler
from app.text.tokenizer import Tokenizer


def load_engine(config: AppConfig, dp_rank: int) -> RankEngine:
    """The engine of rank `dp_rank`, ready to start on the running event loop.

    Raises:
        ModelError: the model can't be served.
        ConfigError: no such device, kernels that can't run on it, or `model.max_model_len` exceeds the
            model's context.
    """
    return EngineThread(load_step_engine(config), dp_rank)


def load_step_engine(config: AppConfig) -> Engine:
    """The torch engine without its thread, to be stepped by the caller. Raises what `load_engine` does."""
    model_dir = resolve_model(config.model)
    tokenizer = Tokenizer.from_folder(model_dir)
    torch.set_num_threads(config.threads_per_rank)
    return Engine.load(
        model_dir,
        config.engine,
        device=config.model.device,
        dtype=config.model.dtype,
        max_model_len=config.model.max_model_len,
        eos_token_ids=tokenizer.eos_token_ids,
        new_text_stream=tokenizer.text_stream,
        new_grammar=GrammarCompiler.from_folder(model_dir, tokenizer.eos_token_ids).grammar,
    )
