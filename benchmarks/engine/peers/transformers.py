"""transformers as a peer: `python -m benchmarks.engine.peers.transformers MODEL_DIR DTYPE THREADS`."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.engine.peers.server import Generate, serve


def load() -> Generate:
    """`generate` with its default cache; prompts of one call have one length, so nothing is padded."""
    model_dir, dtype, threads = sys.argv[1:4]
    torch.set_num_threads(int(threads))
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype))

    def generate(prompts: list[list[int]], max_tokens: int) -> None:
        inputs = torch.tensor(prompts)
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_tokens,
            min_new_tokens=max_tokens,
            do_sample=False,
        )

    return generate


if __name__ == "__main__":
    serve(load)
