"""The whole engine under random use, against transformers and a replay of its events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from app.engine.torch.engine import Engine
from app.engine.torch.memory import kv_cache
from app.engine.torch.model.architecture import read_architecture
from app.engine.torch.model.decoder import Decoder
from app.engine.torch.model.runner import ModelRunner
from app.engine.torch.model.weights import load_weights
from app.engine.torch.outputs import RequestOutput
from app.events.schema import CacheEvent
from app.generation import GenerateRequest, SamplingParams
from app.settings.engine import EngineConfig, Eviction
from kernels.backends import load_kernels
from tests.support.engine.event_replay import EventReplay
from tests.support.examples import examples

NewEngine = Callable[..., Engine]

BLOCK = 4
MAX_OUTPUT = 24
MAX_STEPS = 8000
SALTS = (None, "tenant")

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
class Live:
    """A request that goes on, and what its samples have said."""

    prompt: int
    max_tokens: int
    said: list[list[int]]
    cached_tokens: set[int] = field(default_factory=set)
    unfinished: set[int] = field(default_factory=set)


@dataclass
class Run:
    """An engine, what it was asked, and what it has said."""

    engine: Engine
    expected: list[list[int]]
    replay: EventReplay = field(default_factory=lambda: EventReplay(BLOCK, SALTS))
    live: dict[str, Live] = field(default_factory=dict)
    num_added: int = 0

    def add(self, prompt: int, max_tokens: int, n: int, priority: int, salt: str | None) -> None:
        self.num_added += 1
        params = SamplingParams(max_tokens, temperature=0.0, ignore_eos=True)
        request_id, tokens = str(self.num_added), PROMPTS[prompt]
        self.engine.add_request(GenerateRequest(request_id, tokens, params, salt, n=n, priority=priority))
        room = self.engine.num_blocks * BLOCK + 1 - len(tokens)
        self.live[request_id] = Live(
            prompt, min(max_tokens, room), [[] for _ in range(n)], unfinished=set(range(n))
        )

    def abort(self, number: int) -> None:
        if self.live:
            request_id = list(self.live)[number % len(self.live)]
            del self.live[request_id]
            assert self.engine.abort(request_id)

    def step(self) -> None:
        before = self.engine.load_stat(0)
        result = self.engine.step()
        for output in result.outputs:
            self.take(output)
        self.check(result.events)
        after = self.engine.load_stat(0)
        prefilled = after.total_prefill_uncached_tokens - before.total_prefill_uncached_tokens
        assert result.outputs or prefilled > 0 or not before.num_running_reqs + before.num_waiting_reqs

    def take(self, output: RequestOutput) -> None:
        request = self.live[output.request_id]
        said = request.said[output.index]
        said += output.new_token_ids
        assert said == self.expected[request.prompt][: len(said)]
        assert (output.finish_reason == "length") == (len(said) == request.max_tokens)
        assert output.num_prompt_tokens == len(PROMPTS[request.prompt])
        request.cached_tokens.add(output.num_cached_tokens)
        assert len(request.cached_tokens) == 1, "the samples of a prompt disagree on what was cached"
        if output.finish_reason is not None:
            request.unfinished.remove(output.index)
        if not request.unfinished:
            del self.live[output.request_id]

    def check(self, events: list[CacheEvent]) -> None:
        self.replay.apply(events)
        cached = self.engine.cached_blocks()
        assert {block.hash: block.parent_hash for block in cached} == self.replay.parent_of
        self.engine.check_integrity()
        load = self.engine.load_stat(0)
        num_live = sum(len(request.unfinished) for request in self.live.values())
        assert load.num_running_reqs + load.num_waiting_reqs == num_live
        assert self.engine.has_work() == (num_live > 0)
        if not self.live:
            assert self.engine.num_free_blocks == self.engine.num_blocks


@pytest.fixture(scope="module")
def new_engine(tiny_llama_dir: Path) -> NewEngine:
    """Engines over one copy of the weights, each with a cache of its own full of nonsense."""
    architecture = read_architecture(tiny_llama_dir)
    kernels = load_kernels("torch")
    cpu, dtype = torch.device("cpu"), torch.float32
    model = Decoder(
        architecture, load_weights(tiny_llama_dir, architecture, kernels, cpu, dtype), kernels, 256
    )

    def make(num_blocks: int, eviction: Eviction, **scheduler: int) -> Engine:
        cache = kv_cache.allocate(architecture, num_blocks, BLOCK, cpu, dtype).fill_(float("nan"))
        in_cache = {"block_size": BLOCK, "eviction": eviction}
        config = EngineConfig.model_validate({"cache": in_cache, "scheduler": scheduler})
        runner = ModelRunner(model, kernels, cache)
        return Engine(
            config,
            architecture,
            runner,
            model_dir=tiny_llama_dir,
            num_blocks=num_blocks,
            max_model_len=256,
        )

    return make


ADD = st.tuples(
    st.just("add"),
    st.integers(0, len(PROMPTS) - 1),
    st.integers(1, MAX_OUTPUT),
    st.sampled_from([1, 1, 1, 2, 4]),
    st.sampled_from([0, 0, 0, -1, 1]),
    st.sampled_from([None, None, *SALTS]),
)
STEP = st.tuples(st.just("step"), st.integers(1, 8))
ABORT = st.tuples(st.just("abort"), st.integers(0, 50))
RESET = st.tuples(st.just("reset"))
ACTIONS = st.lists(st.one_of(ADD, ADD, ADD, STEP, STEP, ABORT, RESET), min_size=15, max_size=40)


@settings(
    max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    actions=ACTIONS,
    num_blocks=st.integers(6, 20),
    max_batch_tokens=st.integers(1, 40),
    max_running_requests=st.integers(1, 6),
    eviction=st.sampled_from(get_args(Eviction)),
)
def test_random_use_gives_the_right_tokens_and_loses_no_block(
    actions: list[tuple[Any, ...]],
    num_blocks: int,
    max_batch_tokens: int,
    max_running_requests: int,
    eviction: Eviction,
    new_engine: NewEngine,
    expected: list[list[int]],
) -> None:
    engine = new_engine(
        num_blocks, eviction, max_batch_tokens=max_batch_tokens, max_running_requests=max_running_requests
    )
    run = Run(engine, expected)
    for action, *arguments in actions:
        match action:
            case "add":
                run.add(*arguments)
            case "abort":
                run.abort(*arguments)
            case "reset":
                engine.reset_cache()
            case "step":
                for _ in range(*arguments):
                    run.step()
        run.check(engine.drain_events())
    for _ in range(MAX_STEPS):
        if not run.live:
            break
        run.step()
    assert not run.live
