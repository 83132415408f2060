"""vLLM as a peer, run by the Python of its own environment: `PYTHON vllm.py MODEL_DIR DTYPE THREADS`.

Imports nothing of this project but its neighbour `server`, which needs nothing itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# vLLM reads these when it is imported.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ["OMP_NUM_THREADS"] = sys.argv[3]

# This folder has modules named like the packages that they measure.
sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from vllm import LLM, SamplingParams  # noqa: E402

from benchmarks.engine_peers.server import Generate, serve  # noqa: E402


def load() -> Generate:
    """vLLM's offline engine with its defaults: compiled, prefix caching on."""
    model_dir, dtype = sys.argv[1:3]
    model = LLM(model_dir, dtype=dtype, max_model_len=2048, disable_log_stats=True)

    def generate(prompts: list[list[int]], max_tokens: int) -> None:
        params = SamplingParams(max_tokens=max_tokens, min_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        model.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)

    return generate


if __name__ == "__main__":
    serve(load)
