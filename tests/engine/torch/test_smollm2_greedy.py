"""SmolLM2-135M in float32 says what transformers says, however it is batched, cached or interrupted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from app.engine.torch.engine import Engine
from app.generation import GenerateRequest, SamplingParams
from app.settings.engine import EngineConfig
from app.text.tokenizer import Tokenizer

NUM_TOKENS = 60
QUESTIONS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain how a bicycle stays upright.",
    "List five uses of a paperclip.",
    "Tell me a story about a dragon and a mouse.",
]
Answers = dict[str, list[int]]


@pytest.fixture(scope="session")
def prompts(smollm2_dir: Path) -> dict[str, list[int]]:
    tokenizer = Tokenizer.from_folder(smollm2_dir)
    chats = {question: [{"role": "user", "content": question}] for question in QUESTIONS}
    return {question: tokenizer.encode(tokenizer.render_chat(chat)) for question, chat in chats.items()}


@pytest.fixture(scope="session")
def expected(smollm2_dir: Path, prompts: dict[str, list[int]]) -> Answers:
    model: Any = LlamaForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    # Answers that end early would compare less than they could.
    model.generation_config.eos_token_id = None
    answers = {}
    for question, prompt in prompts.items():
        inputs = torch.tensor([prompt])
        tokens = model.generate(
            inputs,
            # Left to itself it takes the turns' end marks, which are also its padding, for padding.
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
        )
        answers[question] = tokens[0, len(prompt) :].tolist()
    return answers


@dataclass
class Run:
    """What came of asking all prompts at once."""

    answers: Answers
    cached_tokens: dict[str, int]
    num_preempted: int = 0


def answer_all(engine: Engine, prompts: dict[str, list[int]]) -> Run:
    run = Run({question: [] for question in prompts}, {})
    for question, prompt in prompts.items():
        params = SamplingParams(NUM_TOKENS, temperature=0.0, ignore_eos=True)
        engine.add_request(GenerateRequest(question, prompt, params))
    while engine.has_work():
        num_waiting = engine.load_stat(0).num_waiting_reqs
        for output in engine.step().outputs:
            run.answers[output.request_id] += output.new_token_ids
            run.cached_tokens[output.request_id] = output.num_cached_tokens
        # No new request comes, so one that waits again was preempted.
        run.num_preempted += max(0, engine.load_stat(0).num_waiting_reqs - num_waiting)
        engine.check_integrity()
    return run


def load(smollm2_dir: Path, num_blocks: int, max_batch_tokens: int = 512) -> Engine:
    config = {"cache": {"num_blocks": num_blocks}, "scheduler": {"max_batch_tokens": max_batch_tokens}}
    return Engine.load(smollm2_dir, EngineConfig.model_validate(config), device="cpu", dtype="float32")


def test_cold_and_warm(smollm2_dir: Path, prompts: dict[str, list[int]], expected: Answers) -> None:
    engine = load(smollm2_dir, 100)
    cold = answer_all(engine, prompts)
    assert cold.answers == expected
    assert {len(answer) for answer in cold.answers.values()} == {NUM_TOKENS}
    warm = answer_all(engine, prompts)
    assert warm.answers == expected
    assert warm.cached_tokens == {
        question: (len(prompt) - 1) // 16 * 16 for question, prompt in prompts.items()
    }


def test_chunked_and_preempted(smollm2_dir: Path, prompts: dict[str, list[int]], expected: Answers) -> None:
    # Five answers of up to 7 blocks each, of which the first is shared, can't all be held.
    engine = load(smollm2_dir, 14, max_batch_tokens=7)
    run = answer_all(engine, prompts)
    assert run.answers == expected
    assert run.num_preempted > 0
