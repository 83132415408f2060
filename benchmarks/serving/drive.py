"""What a run does with a graph that has just been deployed: wait, warm up, hold all conversations."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
from tqdm import tqdm

from benchmarks.serving.client import ChatClient, hold_conversation
from benchmarks.serving.summary import Reply
from benchmarks.serving.workload import Conversation, make_prompt

WARM_UP_WORDS = 150
"""Long enough for routers to measure a rank's prefill rate."""
READY_WITHIN_S = 60.0
POLL_INTERVAL_S = 0.2


async def wait_until_ready(client: ChatClient, dp_size: int) -> None:
    """Wait until the router knows the content of every rank's cache.

    Raises:
        TimeoutError: not within `READY_WITHIN_S` seconds.
    """
    async with asyncio.timeout(READY_WITHIN_S):
        while not await _all_exact(client, dp_size):
            await asyncio.sleep(POLL_INTERVAL_S)


async def _all_exact(client: ChatClient, dp_size: int) -> bool:
    try:
        ranks = await client.get("/router/ranks")
    except httpx.HTTPStatusError:  # the proxy doesn't know the application yet
        return False
    return [rank["trust"] for rank in ranks] == ["exact"] * dp_size


async def warm_up(client: ChatClient, dp_size: int) -> None:
    """Let every rank compute something, so that every connection exists; no run can reuse these blocks."""
    for rank in range(dp_size):
        for number in range(2):
            await client.chat(make_prompt(WARM_UP_WORDS, seed=number), cache_salt="warm-up", rank=rank)


async def hold_all(
    client: ChatClient, conversations: Sequence[Conversation], stagger_s: float, label: str
) -> list[Reply]:
    """All users' replies, one user after another; the first failure ends everything.

    Args:
        client: sends the requests.
        conversations: in order of arrival.
        stagger_s: seconds between two users' arrivals.
        label: names the progress bar.

    Raises:
        RequestFailedError: a request got no whole answer.
    """
    total = sum(len(each.questions) for each in conversations)
    with tqdm(total=total, desc=label, unit="request") as progress:

        async def arrive(position: int, conversation: Conversation) -> list[Reply]:
            await asyncio.sleep(position * stagger_s)
            return await hold_conversation(client, conversation, progress.update)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(arrive(*each)) for each in enumerate(conversations)]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
    return [reply for task in tasks for reply in task.result()]
