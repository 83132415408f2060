"""What one tenant can learn of another's prompts through the cache: nothing that an answer says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app import hashing
from app.engine.torch.engine import Engine
from app.engine.torch.outputs import RequestOutput
from app.events.schema import BlockRemoved, BlockStored
from app.generation import GenerateRequest, SamplingParams
from app.routing.index.prefix_index import PrefixIndex
from tests.support.depths import depth_by_rank
from tests.support.engine.runs import run
from tests.support.engine.tiny_engine import BLOCK, tiny_engine

PROMPT = list(range(10, 30))
NUM_HITS = 16
"""Of the prompt's 20 tokens: the last block is computed, for there must be a token to go on from."""
SALTS = [None, "a", "b", "secret"]

NewEngine = Callable[[], Engine]


@pytest.fixture
def new_engine(tiny_llama_dir: Path) -> NewEngine:
    def make() -> Engine:
        return tiny_engine(tiny_llama_dir, scheduler={"max_batch_tokens": 8})

    return make


def ask(engine: Engine, tenant: str, cache_salt: str | None = None, *, n: int = 1) -> list[RequestOutput]:
    """Everything that `engine` says to a tenant that sends the prompt."""
    params = SamplingParams(6, seed=3, ignore_eos=True, logprobs=5)
    engine.add_request(GenerateRequest("id", PROMPT, params, hashing.tenant_salt(tenant, cache_salt), n=n))
    return run(engine)["id"]


def num_cached(outputs: list[RequestOutput]) -> int:
    (number,) = {output.num_cached_tokens for output in outputs}
    return number


def num_steps(engine: Engine, tenant: str) -> int:
    """Steps until the tenant's first token: what a clock would show of the cache."""
    engine.add_request(GenerateRequest("id", PROMPT, SamplingParams(1), hashing.tenant_salt(tenant, None)))
    steps = 1
    while not engine.step().outputs:
        steps += 1
    return steps


@pytest.mark.parametrize("salt", SALTS)
def test_a_tenant_finds_its_own_blocks_and_no_others(new_engine: NewEngine, salt: str | None) -> None:
    engine = new_engine()
    assert num_cached(ask(engine, "a", salt)) == 0
    assert num_cached(ask(engine, "a", salt)) == NUM_HITS
    for tenant in ("b", "A", "ab", "a\0", "a\0b"):
        for own in (*SALTS, "a\0b", hashing.tenant_salt("a", salt)):
            assert num_cached(ask(engine, tenant, own)) == 0, (tenant, own)


def test_everything_said_to_a_tenant_is_what_an_engine_of_its_own_would_say(new_engine: NewEngine) -> None:
    """Tokens, logprobs to the last bit, counts, and how many steps each takes."""
    shared = new_engine()
    ask(shared, "a")
    ask(shared, "a", "b")
    assert ask(shared, "b") == ask(new_engine(), "b")
    assert ask(shared, "b", "a") == ask(new_engine(), "b", "a")


def test_the_samples_of_a_prompt_share_only_with_each_other(new_engine: NewEngine) -> None:
    shared = new_engine()
    ask(shared, "a", n=4)
    theirs = ask(shared, "b", n=4)
    assert theirs == ask(new_engine(), "b", n=4)
    assert num_cached(theirs) == 0
    assert num_cached(ask(shared, "b", n=4)) == NUM_HITS


def test_a_first_token_comes_no_sooner_for_what_another_tenant_has_cached(new_engine: NewEngine) -> None:
    shared = new_engine()
    cold = num_steps(shared, "a")
    assert num_steps(shared, "a") < cold
    assert num_steps(shared, "b") == cold


def test_tenants_that_send_the_same_prompt_at_once_compute_it_each(new_engine: NewEngine) -> None:
    engine = new_engine()
    for tenant in ("a", "b"):
        salt = hashing.tenant_salt(tenant, None)
        engine.add_request(GenerateRequest(tenant, PROMPT, SamplingParams(1, ignore_eos=True), salt))
    assert {name: num_cached(outputs) for name, outputs in run(engine).items()} == {"a": 0, "b": 0}
    assert engine.num_cached_blocks == 2 * len(PROMPT) // BLOCK


def test_a_routers_index_knows_a_prompt_by_its_tenant_only(new_engine: NewEngine) -> None:
    """The hashes that an ingress looks for are those that the engine publishes, for one tenant."""
    engine, index = new_engine(), PrefixIndex()
    engine.add_request(GenerateRequest("id", PROMPT, SamplingParams(1), hashing.tenant_salt("a", "b")))
    while engine.has_work():
        for event in engine.step().events:
            assert isinstance(event, BlockStored | BlockRemoved)
            if isinstance(event, BlockStored):
                assert event.cache_salt is None
                index.store(0, event.block_hashes, event.parent_block_hash)

    def depth(cache_salt: str | None) -> dict[int, int]:
        digests = hashing.chain(PROMPT, BLOCK, hashing.seed(cache_salt))
        return depth_by_rank(index, [hashing.wire_hash(digest) for digest in digests])

    assert depth(hashing.tenant_salt("a", "b")) == {0: 5}
    others = [("a", None), ("b", "b"), ("b", "a"), ("ab", None), ("b", None)]
    assert [depth(hashing.tenant_salt(*other)) for other in others] == [{}] * len(others)
    assert depth(None) == depth("a") == depth("b") == depth("ab") == {}
