"""What events cost the engine: per stored block, and as a share of a step."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from app.config import AppConfig
from app.engine.cache.prefix_cache import BlockTable, PrefixCache
from app.engine.loading.torch_engine import load_step_engine
from app.events.config import KvEventsConfig
from app.events.publishing.publisher import EventPublisher
from app.events.schema import BlockStored
from app.generation import GenerateRequest, SamplingParams
from app.hashing import ROOT
from benchmarks.events.rank import BLOCK_SIZE

PROMPT_BLOCKS = 32
_STORED_BLOCKS = 100_000
_CACHE_BLOCKS = 16_384
_VOCABULARY = 40_000
_STEP_REQUESTS = 8
_STEP_TOKENS = 48


@dataclass(frozen=True)
class BlockCost:
    """CPU microseconds per stored block; each evicts another.

    Attributes:
        cache_us: on the engine's thread, in the prefix cache: blocks are made findable by hash, and recorded.
        publish_us: on the engine's thread: handing the batch over.
        publisher_us: on the publisher's thread, which takes turns with the engine's under Python's lock:
            encoding, keeping for replay, sending.
    """

    cache_us: float
    publish_us: float
    publisher_us: float

    @property
    def engine_us(self) -> float:
        """On the engine's thread."""
        return self.cache_us + self.publish_us


@dataclass(frozen=True)
class StepShares:
    """CPU time of publishing, and of the cache's part in it, as a share of the step that it is for."""

    prefill: float
    decode: float
    highest: float


class _Publisher:
    """A rank's publisher, and the CPU time of its thread. There is no subscriber."""

    def __init__(self, port: int) -> None:
        config = KvEventsConfig(
            publisher="zmq",
            endpoint=f"tcp://127.0.0.1:{port}",
            replay_endpoint=f"tcp://127.0.0.1:{port + 10}",
        )
        self._publisher = EventPublisher(config, dp_rank=0, dp_size=1, block_size=BLOCK_SIZE)
        self._publisher.start()
        (thread,) = (each for each in threading.enumerate() if each.name == "kv-publisher")
        assert thread.ident is not None
        self._clock = time.pthread_getcpuclockid(thread.ident)
        self.publish = self._publisher.publish
        self.close = self._publisher.close

    def drained_cpu_s(self) -> float:
        """CPU seconds of the publisher's thread, once all is sent."""
        while self._publisher.counters.published_batches <= self._publisher.last_seq:
            time.sleep(0.0005)
        return time.clock_gettime(self._clock)


@contextmanager
def _publishing(port: int) -> Iterator[_Publisher]:
    publisher = _Publisher(port)
    yield publisher
    publisher.close()


def measure_blocks(port: int, blocks_per_batch: int, seed: int) -> BlockCost:
    """The cost in a prefix cache that is given prompts of `blocks_per_batch` blocks as computed.

    Their hashes are known before: they are needed for finding prefixes, events or not.
    """
    rng, cache = random.Random(seed), PrefixCache(_CACHE_BLOCKS, BLOCK_SIZE)
    num_tokens = blocks_per_batch * BLOCK_SIZE
    cache_s = publish_s = 0.0
    with _publishing(port) as publisher:
        before = publisher.drained_cpu_s()
        for _ in range(_STORED_BLOCKS // blocks_per_batch):
            prompt, table = rng.choices(range(_VOCABULARY), k=num_tokens), BlockTable(ROOT)
            table.extend_digests(prompt, BLOCK_SIZE)
            cache.open(table, 0)
            cache.grow(table, blocks_per_batch)
            started = time.thread_time()
            cache.commit(table, prompt, num_tokens)
            committed = time.thread_time()
            publisher.publish(cache.drain_events())
            cache_s, publish_s = cache_s + committed - started, publish_s + time.thread_time() - committed
            cache.close(table)
        publisher_s = publisher.drained_cpu_s() - before
    per_block = 1e6 / (_STORED_BLOCKS // blocks_per_batch * blocks_per_batch)
    return BlockCost(cache_s * per_block, publish_s * per_block, publisher_s * per_block)


def measure_steps(
    port: int, model_dir: Path, threads: int, chunk: BlockCost, single: BlockCost, seed: int
) -> StepShares:
    """Steps of a real engine: prompts in chunks, then decoding. The cost of the cache's part is given."""
    model = {"path": str(model_dir), "device": "cpu"}
    settings = {"num_threads": threads, "cache": {"num_blocks": 1024}}
    engine = load_step_engine(AppConfig.model_validate({"model": model, "engine": settings}))
    rng = random.Random(seed)
    for index in range(_STEP_REQUESTS):
        prompt = rng.choices(range(_VOCABULARY), k=PROMPT_BLOCKS * BLOCK_SIZE)
        params = SamplingParams(_STEP_TOKENS, temperature=0.0, ignore_eos=True)
        engine.add_request(GenerateRequest(str(index), prompt, params))
    shares: dict[bool, list[float]] = {True: [], False: []}
    with _publishing(port) as publisher:
        while engine.has_work():
            before = publisher.drained_cpu_s()
            started = time.perf_counter()
            result = engine.step()
            step_s = time.perf_counter() - started
            started = time.thread_time()
            publisher.publish(result.events)
            publish_s = time.thread_time() - started + publisher.drained_cpu_s() - before
            stored = [each for each in result.events if isinstance(each, BlockStored)]
            num_stored = sum(len(each.block_hashes) for each in stored)
            is_prefill = num_stored > _STEP_REQUESTS
            cache_us = (chunk if is_prefill else single).cache_us
            shares[is_prefill].append((publish_s + num_stored * cache_us / 1e6) / step_s)
    return StepShares(median(shares[True]), median(shares[False]), max(shares[True] + shares[False]))
