"""Ours: the torch engine on its thread."""

from __future__ import annotations

import torch

from app.config import AppConfig
from app.engine.interface import RankEngine
from app.engine.torch.engine import Engine
from app.engine.torch.engine_thread import EngineThread
from app.models.store import resolve_model
from app.text.grammar import GrammarCompiler
from app.text.tokenizer import Tokenizer


def load(config: AppConfig, dp_rank: int) -> RankEngine:
    """See `load_engine`.

    Raises:
        ModelError: the model can't be served.
        ConfigError: no such device, kernels that can't run on it, or `model.max_model_len` exceeds the
            model's context.
    """
    return EngineThread(load_step_engine(config), dp_rank)


def load_step_engine(config: AppConfig) -> Engine:
    """The engine without its thread, to be stepped by the caller. Raises what `load` does."""
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
