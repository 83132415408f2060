"""SmolLM2-135M in float32 says what transformers says, however it is batched, cached or interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from app.config import EngineConfig
from app.engine.engine import Engine
from app.engine.request import SamplingParams
from app.tokenizer import Tokenizer

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
    model = LlamaForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    answers = {}
    for question, prompt in prompts.items():
        tokens = model.generate(torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False)
        answers[question] = tokens[0, len(prompt) :].tolist()
    return answers


def answer_all(engine: Engine, prompts: dict[str, list[int]]) -> tuple[Answers, dict[str, int]]:
    """Every prompt's answer, and how much of it was cached, all asked at once."""
    for question, prompt in prompts.items():
        engine.add_request(question, prompt, SamplingParams(NUM_TOKENS, temperature=0.0))
    answers: Answers = {question: [] for question in prompts}
    cached = {}
    while engine.has_work():
        for output in engine.step().outputs:
            answers[output.request_id] += output.new_token_ids
            cached[output.request_id] = output.num_cached_tokens
        engine.check_integrity()
    return answers, cached


def load(smollm2_dir: Path, num_blocks: int, max_batch_tokens: int = 512) -> Engine:
    config = {"cache": {"num_blocks": num_blocks}, "scheduler": {"max_batch_tokens": max_batch_tokens}}
    return Engine.load(smollm2_dir, EngineConfig.model_validate(config), device="cpu", dtype="float32")


def test_cold_and_warm(smollm2_dir: Path, prompts: dict[str, list[int]], expected: Answers) -> None:
    engine = load(smollm2_dir, 100)
    assert answer_all(engine, prompts)[0] == expected
    answers, cached = answer_all(engine, prompts)
    assert answers == expected
    assert all(cached[question] == (len(prompts[question]) - 1) // 16 * 16 for question in prompts)


def test_chunked_and_preempted(smollm2_dir: Path, prompts: dict[str, list[int]], expected: Answers) -> None:
    # Five answers of up to 7 blocks each, of which the first is shared, can't all be held.
    engine = load(smollm2_dir, 14, max_batch_tokens=7)
    assert answer_all(engine, prompts)[0] == expected
