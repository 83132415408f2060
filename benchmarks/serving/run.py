"""Runs a plan: the real graph under its conversations, once per policy and round, with empty caches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from benchmarks.graphs.graph import deployed, running_ray, with_policy
from benchmarks.machine import machine
from benchmarks.serving.client import ChatClient
from benchmarks.serving.drive import hold_all, wait_until_ready, warm_up
from benchmarks.serving.options import POLICIES
from benchmarks.serving.overhead import LocalEngine, TtftPair, measure_pair, overhead_ms
from benchmarks.serving.plan import Plan
from benchmarks.serving.summary import Summary, median_summary, summarize
from benchmarks.serving.workload import make_prompt


@dataclass(frozen=True)
class Report:
    """What was measured: the summaries by policy's name, and the overhead's figures."""

    policies: Mapping[str, Summary]
    overhead: Mapping[str, float]


def run_plan(plan: Plan) -> Report:
    """All rounds of all policies. The overhead's pairs are spread over the runs, as the machine is noisy.

    Raises:
        RequestFailedError: a request got no whole answer.
        TimeoutError: the graph did not get ready.
    """
    options = plan.options
    engine = LocalEngine(plan.config)
    summaries: dict[str, list[Summary]] = {name: [] for name in options.policies}
    pairs: list[TtftPair] = []
    num_pairs = -(-options.overhead_requests // (options.rounds * len(options.policies)))
    with running_ray(plan.config) as url:
        for label, name in _runs(options.policies, options.rounds):
            with deployed(with_policy(plan.args, POLICIES[name], plan.config.dp_size)):
                summary, new_pairs = asyncio.run(_run(plan, url, engine, num_pairs, label))
            summaries[name].append(summary)
            pairs += new_pairs
    return Report(
        {name: median_summary(rounds) for name, rounds in summaries.items()},
        {**overhead_ms(pairs), "overhead_requests": len(pairs)},
    )


def describe(plan: Plan) -> dict[str, Any]:
    """Settings and machine, as JSON."""
    config = plan.config
    return {
        "options": asdict(plan.options) | {"config": str(plan.options.config)},
        "model": config.model.path,
        "dp_size": config.dp_size,
        "block_size": config.engine.cache.block_size,
        "num_blocks_per_rank": config.engine.cache.num_blocks,
        "num_blocks_needed_by_all": plan.needed_blocks,
        "machine": machine(),
    }


def _runs(policies: Sequence[str], rounds: int) -> Iterator[tuple[str, str]]:
    """(label, policy) of every run; each round begins with another policy."""
    for number in range(rounds):
        first = number % len(policies)
        for name in (*policies[first:], *policies[:first]):
            yield f"round {number + 1}/{rounds} {name}", name


async def _run(
    plan: Plan, url: str, engine: LocalEngine, num_pairs: int, label: str
) -> tuple[Summary, list[TtftPair]]:
    options = plan.options
    async with ChatClient(
        url, answer_tokens=options.answer_tokens, concurrency=options.concurrency
    ) as client:
        await wait_until_ready(client, plan.config.dp_size)
        await warm_up(client, plan.config.dp_size)
        started = time.perf_counter()
        replies = await hold_all(client, plan.conversations, options.stagger_s, label)
        summary = summarize(replies, time.perf_counter() - started)
    async with ChatClient(url, answer_tokens=1, concurrency=1) as client:
        return summary, await _measure_pairs(client, engine, options.overhead_words, num_pairs, label)


async def _measure_pairs(
    client: ChatClient, engine: LocalEngine, num_words: int, count: int, label: str
) -> list[TtftPair]:
    """Unloaded pairs; the first one warms up. Which side goes first alternates."""
    prompt = make_prompt(num_words, seed=0)
    numbers = tqdm(range(count + 1), desc=f"{label}: overhead", unit="pair")
    pairs = [await measure_pair(client, engine, prompt, http_first=number % 2 == 0) for number in numbers]
    return pairs[1:]
