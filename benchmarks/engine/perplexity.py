"""How well a model in some dtype, on some kernels, predicts a fixed text: the Apache license."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from app.engine.torch.memory import kv_cache
from app.engine.torch.memory.placement import resolve_kernels
from app.engine.torch.model.architecture import read_architecture
from app.engine.torch.model.decoder import Batch, Decoder, kv_cache_pairs
from app.engine.torch.model.weights import load_weights
from app.settings.engine import KernelBackend
from app.text.tokenizer import Tokenizer

TEXT = Path(__file__).parents[2] / "LICENSE"
NUM_TOKENS = 2048
BLOCK_SIZE = 16


@torch.inference_mode()
def perplexity(model_dir: Path, dtype: torch.dtype, backend: KernelBackend) -> float:
    """exp(mean negative log-likelihood) of the text's tokens after the first, computed in one step.

    Raises:
        KvbeaconError: the model can't be loaded, or the kernels can't run here.
    """
    cpu = torch.device("cpu")
    kernels = resolve_kernels(backend, cpu)
    architecture = read_architecture(model_dir)
    weights = load_weights(model_dir, architecture, kernels, cpu, dtype)
    num_blocks = NUM_TOKENS // BLOCK_SIZE
    decoder = Decoder(architecture, weights, kernels, NUM_TOKENS)
    cache = kv_cache.allocate(architecture, num_blocks, BLOCK_SIZE, cpu, dtype)
    token_ids = torch.tensor(Tokenizer.from_folder(model_dir).encode(TEXT.read_text())[:NUM_TOKENS])
    places = torch.arange(len(token_ids))
    blocks = torch.arange(num_blocks).unsqueeze(0)
    lens, scale = [len(token_ids)], architecture.head_dim**-0.5
    attention = {
        window: kernels.plan_attention(lens, lens, blocks, BLOCK_SIZE, scale, sliding_window=window)
        for window in decoder.sliding_windows
    }
    batch = Batch(token_ids, places, places, attention, wanted_rows=places[:-1])
    logits = decoder.forward(batch, kv_cache_pairs(cache))
    return math.exp(torch.nn.functional.cross_entropy(logits, token_ids[1:]).item())
