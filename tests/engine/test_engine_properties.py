"""The whole engine under random use, against transformers and a replay of its events."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from app import hashing
from app.config import EngineConfig
from app.engine.engine import Engine
from app.engine.request import SamplingParams
from app.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, CacheEvent

BLOCK = 4
MAX_OUTPUT = 24
MAX_STEPS = 2000

# Prompts that share heads: each is a path through a small tree of runs of tokens.
RUNS = [list(range(start, start + 6)) for start in range(20, 140, 6)]
PROMPTS = [
    *(RUNS[a] + RUNS[2 + b] + RUNS[4 + c][: 1 + c] for a in range(2) for b in range(2) for c in range(3)),
    RUNS[0][:1],
    RUNS[0][:4],
    [*RUNS[0], *RUNS[2], *RUNS[5], *RUNS[6]],
]


@pytest.fixture(scope="module")
def expected(tiny_llama_dir: Path) -> list[list[int]]:
    """What transformers makes of each prompt, greedily and without a cache."""
    model = LlamaForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    outputs = []
    for prompt in PROMPTS:
        tokens = list(prompt)
        with torch.inference_mode():
            for _ in range(MAX_OUTPUT):
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        outputs.append(tokens[len(prompt) :])
    return outputs


@dataclass
class Replay:
    """What a consumer of the events believes: each block's parent, and digests from nothing but tokens."""

    parent_of: dict[int, int | None] = field(default_factory=dict)
    digest_of: dict[int | None, bytes] = field(default_factory=lambda: {None: hashing.ROOT})

    def apply(self, event: CacheEvent) -> None:
        match event:
            case BlockStored():
                parent = event.parent_block_hash
                assert parent is None or parent in self.parent_of
                digests = hashing.chain(event.token_ids, BLOCK, self.digest_of[parent])
                assert [hashing.wire_hash(digest) for digest in digests] == event.block_hashes
                for name, digest in zip(event.block_hashes, digests, strict=True):
                    assert name not in self.parent_of
                    self.parent_of[name], self.digest_of[name], parent = parent, digest, name
            case BlockRemoved():
                for name in event.block_hashes:
                    del self.parent_of[name]
            case AllBlocksCleared():
                self.parent_of.clear()

    def num_hit_tokens(self, tokens: list[int]) -> int:
        digests = hashing.chain(tokens[: (len(tokens) - 1) // BLOCK * BLOCK], BLOCK)
        hits = [hashing.wire_hash(digest) in self.parent_of for digest in digests]
        return BLOCK * (hits.index(False) if False in hits else len(hits))


@dataclass
class Run:
    """An engine, what it was asked, and what it has said."""

    engine: Engine
    expected: list[list[int]]
    replay: Replay = field(default_factory=Replay)
    live: dict[str, int] = field(default_factory=dict)  # request id to prompt
    max_tokens: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, list[int]] = field(default_factory=dict)

    def add(self, prompt: int, max_tokens: int) -> None:
        request_id = str(len(self.outputs))
        self.engine.add_request(
            request_id, PROMPTS[prompt], SamplingParams(max_tokens, temperature=0.0, ignore_eos=True)
        )
        self.live[request_id] = prompt
        room = self.engine.num_blocks * BLOCK + 1 - len(PROMPTS[prompt])
        self.max_tokens[request_id] = min(max_tokens, room)
        self.outputs[request_id] = []

    def abort(self, number: int) -> None:
        if self.live:
            request_id = list(self.live)[number % len(self.live)]
            del self.live[request_id]
            assert self.engine.abort(request_id)

    def step(self) -> None:
        was_idle = self.engine.num_free_blocks == self.engine.num_blocks
        first, hits = next(iter(self.live), None), 0
        if first is not None and was_idle:
            hits = self.replay.num_hit_tokens(PROMPTS[self.live[first]])
        result = self.engine.step()
        for output in result.outputs:
            prompt = self.live[output.request_id]
            if output.request_id == first and was_idle and not self.outputs[first]:
                assert output.num_cached_tokens == hits
            self.outputs[output.request_id] += output.new_token_ids
            said = self.outputs[output.request_id]
            assert said == self.expected[prompt][: len(said)]
            assert (output.finish_reason == "length") == (len(said) == self.max_tokens[output.request_id])
            if output.finish_reason is not None:
                del self.live[output.request_id]
        self.check(result.events)

    def check(self, events: list[CacheEvent]) -> None:
        for event in events:
            self.replay.apply(event)
        cached = self.engine.cached_blocks()
        assert {block.hash: block.parent_hash for block in cached} == self.replay.parent_of
        self.engine.check_integrity()
        assert self.engine.has_work() == bool(self.live)
        if not self.live:
            assert self.engine.num_free_blocks == self.engine.num_blocks


ADD = st.tuples(st.just("add"), st.integers(0, len(PROMPTS) - 1), st.integers(1, MAX_OUTPUT))
STEP = st.tuples(st.just("step"), st.integers(1, 8), st.just(0))
ABORT = st.tuples(st.just("abort"), st.integers(0, 50), st.just(0))
RESET = st.tuples(st.just("reset"), st.just(0), st.just(0))
ACTIONS = st.lists(st.one_of(ADD, ADD, ADD, STEP, STEP, ABORT, RESET), min_size=15, max_size=40)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions=ACTIONS,
    num_blocks=st.integers(6, 20),
    max_batch_tokens=st.integers(1, 40),
    max_running_requests=st.integers(1, 6),
)
def test_random_use_gives_the_right_tokens_and_loses_no_block(
    actions: list[tuple[str, int, int]],
    num_blocks: int,
    max_batch_tokens: int,
    max_running_requests: int,
    tiny_llama_dir: Path,
    expected: list[list[int]],
) -> None:
    scheduler = {"max_batch_tokens": max_batch_tokens, "max_running_requests": max_running_requests}
    config = EngineConfig.model_validate(
        {"cache": {"block_size": BLOCK, "num_blocks": num_blocks}, "scheduler": scheduler}
    )
    run = Run(Engine.load(tiny_llama_dir, config, device="cpu", dtype="float32"), expected)
    for action, number, max_tokens in actions:
        if action == "add":
            run.add(number, max_tokens)
        elif action == "abort":
            run.abort(number)
        elif action == "reset":
            run.engine.reset_cache()
        for _ in range(number if action == "step" else 0):
            run.step()
        run.check(run.engine.drain_events())
    for _ in range(MAX_STEPS):
        if not run.live:
            break
        run.step()
    assert not run.live
