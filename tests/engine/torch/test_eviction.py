"""Which prompts an engine keeps in a full cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.generation import GenerateRequest, SamplingParams
from app.settings.engine import Eviction
from tests.support.engine.runs import run
from tests.support.engine.tiny_engine import BLOCK, tiny_engine


@pytest.mark.parametrize(("eviction", "num_cached"), [("lru", 0), ("segmented", 2 * BLOCK)])
def test_a_prompt_that_was_used_again_outlives_documents_if_the_setting_says_so(
    eviction: Eviction, num_cached: int, tiny_llama_dir: Path
) -> None:
    cache = {"block_size": BLOCK, "num_blocks": 8, "eviction": eviction}
    engine = tiny_engine(tiny_llama_dir, settings={"cache": cache})
    conversation = list(range(10))  # two full blocks, a quarter of the cache
    documents = [list(range(start, start + 5 * BLOCK)) for start in (20, 50, 80)]
    for number, prompt in enumerate((conversation, conversation, *documents, conversation)):
        engine.add_request(GenerateRequest(str(number), prompt, SamplingParams(1, temperature=0.0)))
        (output,) = run(engine)[str(number)]
    assert output.num_cached_tokens == num_cached
