"""vLLM as a peer, in its own environment: `PYTHON -m benchmarks.engine.peers.vllm MODEL_DIR DTYPE`.

Imports nothing of this project but its neighbour `server`, which needs nothing itself.
"""

from __future__ import annotations

import sys

from vllm import LLM, SamplingParams

from benchmarks.engine.peers.server import Generate, serve


def load() -> Generate:
    """vLLM's offline engine with its defaults: compiled, prefix caching on."""
    model_dir, dtype = sys.argv[1:3]
    model = LLM(model_dir, dtype=dtype, max_model_len=2048, disable_log_stats=True)

    def generate(prompts: list[list[int]], max_tokens: int) -> None:
        params = SamplingParams(
            max_tokens=max_tokens, min_tokens=max_tokens, temperature=0.0, ignore_eos=True
        )
        model.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)

    return generate


if __name__ == "__main__":
    serve(load)
