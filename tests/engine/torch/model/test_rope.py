"""Cosines and sines are those of transformers, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from app.engine.torch.model.rope import cos_sin
from app.engine.torch.model.rope_settings import read_rope

HEAD_DIM, CONTEXT = 64, 4096
LLAMA3 = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"type": "yarn", "factor": 4.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "base": {"rope_theta": 1e6},
    "base within": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 3.0}, "rope_theta": 1e6},
    "llama3": {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 512}, "rope_theta": 5e5},
    "llama3 without its first context": {"rope_scaling": LLAMA3},
    "yarn": {"rope_scaling": YARN | {"original_max_position_embeddings": 1024}, "rope_theta": 1e6},
    "yarn without its first context": {"rope_scaling": YARN},
    "yarn with a context beside it": {"rope_scaling": YARN, "original_max_position_embeddings": 512},
    "yarn by the contexts": {
        "rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 256}
    },
    "yarn attention": {"rope_scaling": YARN | {"attention_factor": 0.5}},
    "yarn mscale": {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}},
    "yarn mscale alone": {"rope_scaling": YARN | {"mscale": 0.7}},
    "yarn blending": {
        "rope_scaling": YARN
        | {"original_max_position_embeddings": 512, "beta_fast": 16, "beta_slow": 2, "truncate": False}
    },
    "yarn of one pair": {"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 1, "truncate": False}},
    "yarn that scales nothing": {"rope_scaling": YARN | {"factor": 1.0}},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_as_in_transformers(settings: str) -> None:
    config = {"max_position_embeddings": CONTEXT, "head_dim": HEAD_DIM} | SETTINGS[settings]
    theirs = LlamaRotaryEmbedding(LlamaConfig(**config))
    expected = theirs(torch.zeros(1), torch.arange(CONTEXT).unsqueeze(0))
    ours = cos_sin(read_rope(config), HEAD_DIM, CONTEXT)
    for got, wanted in zip(ours, expected, strict=True):
        # Theirs has each pair's angle twice, once for each of its two numbers.
        assert torch.equal(got, wanted[0, :, : HEAD_DIM // 2])
