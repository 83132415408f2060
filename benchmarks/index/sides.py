"""The two sides of the index's benchmark: kvbeacon's router, and Dynamo's radix tree."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from app.events.batch_codec import decode_batch, encode_batch
from app.events.schema import MEDIUM, BlockRemoved, BlockStored, CacheEvent, EventBatch, LoadStat
from app.routing.core import RoutingCore
from app.routing.decisions.decision import Prompt
from app.routing.index.index_writer import IndexWriter
from app.settings.routing import RoutingConfig
from benchmarks.index.workload import Event

BLOCK_SIZE = 16
_MAX_WAITING_TOKENS = 4_000


class Side(Protocol):
    """One of the two."""

    def stored(self, event: Event) -> bytes:
        """What comes over the wire when a rank stores these blocks."""

    def removed(self, event: Event) -> bytes:
        """The same when it removes them."""

    def apply(self, rank: int, payload: bytes) -> None:
        """Take in an event of `rank`."""

    def prompt(self, block_hashes: Sequence[int]) -> Sequence[int]:
        """Block hashes as this side takes them; isn't part of a query's time."""

    def query(self, block_hashes: Sequence[int]) -> Mapping[tuple[int, int], int]:
        """How many leading blocks of a prompt are held, by (rank, 0): all that this side says of it."""

    def after_query(self) -> None:
        """What follows a query and isn't part of its time."""


class Router:
    """kvbeacon's router: index, load and policy. A query is a whole decision, its reservation included."""

    def __init__(self, num_ranks: int) -> None:
        rng = random.Random(1)
        self._core = RoutingCore(RoutingConfig(policy="predicted_ttft"), num_ranks)
        self._writers = [IndexWriter(self._core.index, rank) for rank in range(num_ranks)]
        for rank in range(num_ranks):
            self._core.join(rank)
            self._core.load.report(
                rank, LoadStat(4, 2, 0, 1, rank, rng.randrange(_MAX_WAITING_TOKENS), 0, 64, 0, 0)
            )
            self._core.membership.set(rank, "exact")
        self._ids = map(str, itertools.count())
        self._last_id = ""

    def stored(self, event: Event) -> bytes:
        """A batch of kvbeacon's."""
        stored = BlockStored(event.block_hashes, event.parent, [], BLOCK_SIZE, medium=MEDIUM)
        return self._batch(event.rank, stored)

    def removed(self, event: Event) -> bytes:
        """A batch of kvbeacon's."""
        return self._batch(event.rank, BlockRemoved(event.block_hashes, MEDIUM))

    def apply(self, rank: int, payload: bytes) -> None:
        """Decode, and change the index."""
        self._writers[rank].apply(decode_batch(payload, token_ids=False).events)

    def prompt(self, block_hashes: Sequence[int]) -> Sequence[int]:
        """As they are."""
        return block_hashes

    def query(self, block_hashes: Sequence[int]) -> Mapping[tuple[int, int], int]:
        """The chosen rank."""
        self._last_id = next(self._ids)
        prompt = Prompt(self._last_id, block_hashes, len(block_hashes) * BLOCK_SIZE, BLOCK_SIZE)
        decision = self._core.choose(prompt, 0.0)
        return {(decision.rank, 0): decision.cached_tokens // BLOCK_SIZE}

    def after_query(self) -> None:
        """The reservation ends, so that load stays as it is."""
        self._core.reservations.release(self._last_id)

    def _batch(self, rank: int, event: CacheEvent) -> bytes:
        return encode_batch(EventBatch(0.0, [event], rank))


class RadixTree:
    """Dynamo's: `ai-dynamo-runtime`. A query is a match with its scores.

    Raises:
        ImportError: it isn't installed.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree

    def stored(self, event: Event) -> bytes:
        """Dynamo's event in JSON; a block's tokens have the same hash as the block."""
        blocks = [{"block_hash": each % 2**64, "tokens_hash": each % 2**64} for each in event.block_hashes]
        parent = None if event.parent is None else event.parent % 2**64
        return self._event({"stored": {"parent_hash": parent, "blocks": blocks}})

    def removed(self, event: Event) -> bytes:
        """Dynamo's event in JSON."""
        return self._event({"removed": {"block_hashes": [each % 2**64 for each in event.block_hashes]}})

    def apply(self, rank: int, payload: bytes) -> None:
        """Decode, and change the tree."""
        self._tree.apply_event(rank, payload)

    def prompt(self, block_hashes: Sequence[int]) -> Sequence[int]:
        """Dynamo's hashes are unsigned."""
        return [each % 2**64 for each in block_hashes]

    def query(self, block_hashes: Sequence[int]) -> Mapping[tuple[int, int], int]:
        """Every worker and rank that holds something."""
        scores: dict[tuple[int, int], int] = self._tree.find_matches(block_hashes).scores
        return scores

    def after_query(self) -> None:
        """Nothing."""

    def _event(self, data: dict[str, Any]) -> bytes:
        return json.dumps({"event_id": 0, "dp_rank": 0, "data": data}).encode()
