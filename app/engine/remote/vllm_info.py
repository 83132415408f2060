"""Reads what a vLLM server says of itself: `/kv_event_sources`, `/v1/models`, `/version` and `/metrics`.

Facts of vLLM 0.32: a source per DP rank, by the rank's number; neither block size nor model is in it. The
block size and the number of blocks are labels of the metric `vllm:cache_config_info`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from app.engine.remote.api.vllm import VllmApi
from app.engine.remote.worker import MAX_COUNT, Publisher, WorkerDescription, dialled, endpoint_fault
from app.errors import WorkerError
from app.events.schema import LoadStat

Json = dict[str, Any]

_SAMPLE = re.compile(r"(vllm:\w+)\{(.*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
MAX_DIGITS = 15
NEEDED_FLAG = "vllm serve --enable-scale-out"


class Metrics:
    """The samples of `/metrics` that are vLLM's and of one engine."""

    def __init__(self, text: str, engine: str) -> None:
        self._samples = dict(_samples(text, engine))

    def value(self, name: str) -> float | None:
        """A gauge's or counter's value; None if it isn't there."""
        sample = self._samples.get(name)
        return sample[1] if sample is not None else None

    def label(self, name: str, label: str) -> int | None:
        """A whole number that a sample has as its label; None if it isn't there."""
        text = self._samples.get(name, ({}, 0.0))[0].get(label, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def engine_of(sources: Json, dp_rank: int) -> str:
    """The number, as text, of the `dp_rank`-th engine that the server has.

    Raises:
        WorkerError: it has none, or not so many.
    """
    numbers = sorted((key for key in sources if key.isascii() and key.isdigit()), key=int)
    if dp_rank >= len(numbers):
        # What has no sources has one engine all the same.
        if dp_rank == 0:
            return "0"
        raise WorkerError(f"/kv_event_sources has {len(numbers)} ranks; rank {dp_rank} isn't there")
    return numbers[dp_rank]


Models = tuple[tuple[str, ...], int | None]
"""Every name of the served models, and the context in tokens, if it is said."""


def describe(
    sources: Json,
    models: Models,
    version: str,
    metrics: Metrics,
    engine: str,
    server_host: str,
    has_api: bool,
) -> WorkerDescription:
    """The engine with this number, from the server's answers; `has_api`: whether it generates from tokens."""
    names, context = models
    dp_size = len(sources) or 1
    publisher, no_publisher = _publisher(sources.get(engine), server_host)
    cannot_generate = f"it doesn't serve {VllmApi.path}: start it with `{NEEDED_FLAG}`"
    return WorkerDescription(
        kind="vllm",
        version=version,
        dp_size=dp_size,
        model_names=names,
        max_model_len=context,
        block_size=metrics.label("vllm:cache_config_info", "block_size"),
        num_blocks=metrics.label("vllm:cache_config_info", "num_gpu_blocks"),
        publisher=publisher,
        no_publisher=no_publisher,
        dp_rank=int(engine) if dp_size > 1 else None,
        # Whether priorities count there isn't said; unless they do, they are ignored.
        higher_first=False,
        cannot_generate=None if has_api else cannot_generate,
    )


def read_load(metrics: Metrics, worker: WorkerDescription, dp_rank: int) -> LoadStat | None:
    """The load that `/metrics` shows; None if it isn't there. It says nothing of what waits but how many."""
    running = metrics.value("vllm:num_requests_running")
    if running is None:
        return None
    capacity = (worker.num_blocks or 0) * (worker.block_size or 0)
    held = int((metrics.value("vllm:kv_cache_usage_perc") or 0) * capacity)
    return LoadStat(
        num_running_reqs=int(running),
        num_waiting_reqs=int(metrics.value("vllm:num_requests_waiting") or 0),
        num_tokens=held,
        max_total_num_tokens=capacity,
        dp_rank=dp_rank,
        num_waiting_uncached_tokens=0,
        num_total_tokens=held,
        max_running_requests=0,
        total_prefill_uncached_tokens=0,
        total_prefill_busy_us=0,
    )


def read_models(answer: Json) -> Models:
    """What stays the same in `/v1/models`: each answer has times and numbers of its own."""
    cards = [each for each in answer.get("data") or () if isinstance(each, dict)]
    names = (each.get(key) for each in cards for key in ("id", "root"))
    contexts = (each.get("max_model_len") for each in cards)
    context = next((each for each in contexts if type(each) is int), None)
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str))), context


def _publisher(source: Any, server_host: str) -> tuple[Publisher | None, str]:
    if not isinstance(source, dict) or source.get("publisher") != "zmq":
        return None, "its /kv_event_sources names no publisher: start it with --kv-events-config"
    endpoint, replay = source.get("endpoint"), source.get("replay_endpoint")
    if not isinstance(endpoint, str):
        return None, f"its /kv_event_sources has endpoint = {endpoint!r}"
    for key, given in (("endpoint", endpoint), ("replay_endpoint", replay)):
        if isinstance(given, str) and (fault := endpoint_fault(given)) is not None:
            return None, f"its /kv_event_sources has {key} = {given!r}, {fault}"
    return (
        Publisher(
            dialled(endpoint, server_host),
            dialled(replay, server_host) if isinstance(replay, str) else None,
            None,
            str(source.get("topic") or ""),
            None,
        ),
        "",
    )


def _samples(text: str, engine: str) -> Iterator[tuple[str, tuple[dict[str, str], float]]]:
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is None:
            continue
        labels = dict(_LABEL.findall(match[2]))
        if labels.get("engine", engine) != engine:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if 0 <= value <= MAX_COUNT:  # which a NaN isn't either
            yield match[1], (labels, value)
