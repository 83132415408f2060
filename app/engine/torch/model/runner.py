"""From a schedule to logits: builds the step's tensors once, then runs the model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from app.engine.torch.model.decoder import Batch, Decoder, kv_cache_pairs
from app.engine.torch.schedule import ScheduledRequest
from kernels.interface import Kernels


class ModelRunner:
    """A model and its KV cache [layers, 2, num_blocks, block_size, K, D] on one device."""

    def __init__(self, model: Decoder, kernels: Kernels, kv_cache: Tensor) -> None:
        self._model = model
        self.kernels = kernels
        self._kv_cache = kv_cache_pairs(kv_cache)
        self._block_size = kv_cache.shape[3]
        self._scale = kv_cache.shape[-1] ** -0.5
        self.device = kv_cache.device
        self.dtype = kv_cache.dtype

    @torch.inference_mode()
    def run(self, scheduled: Sequence[ScheduledRequest]) -> tuple[Tensor, Tensor]:
        """Compute the scheduled tokens.

        Returns:
            Logits [sampled, vocab] in float32, one row per scheduled request that `is_sampled`, in order;
            and what `logits` takes [scored, hidden], one row per place that requests have `scored`.
        """
        hidden = self._model.hidden(self._batch(scheduled), self._kv_cache)
        num_sampled = sum(item.is_sampled for item in scheduled)
        return self._model.logits(hidden[:num_sampled]), hidden[num_sampled:]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocab] in float32 of rows [n, hidden] that `run` has returned."""
        return self._model.logits(hidden)

    def _batch(self, scheduled: Sequence[ScheduledRequest]) -> Batch:
        query_lens = [item.num_tokens for item in scheduled]
        starts = [item.request.num_computed_tokens for item in scheduled]
        ends = [start + length for start, length in zip(starts, query_lens, strict=True)]
        token_ids = [
            token_id
            for item, start, end in zip(scheduled, starts, ends, strict=True)
            for token_id in item.request.token_ids[start:end]
        ]
        positions = self._tensor([*itertools.chain(*map(range, starts, ends))])
        block_tables = self._block_tables(scheduled)
        sequences = torch.repeat_interleave(self._tensor(query_lens))
        blocks = block_tables[sequences, positions // self._block_size]
        first_rows = [0, *itertools.accumulate(query_lens)]
        rows = list(zip(scheduled, starts, first_rows, strict=False))
        sampled = [first + item.num_tokens - 1 for item, _, first in rows if item.is_sampled]
        scored = [first + place - start for item, start, first in rows for place in item.scored]
        return Batch(
            self._tensor(token_ids),
            positions,
            blocks * self._block_size + positions % self._block_size,
            {
                window: self.kernels.plan_attention(
                    query_lens, ends, block_tables, self._block_size, self._scale, sliding_window=window
                )
                for window in self._model.sliding_windows
            },
            self._tensor([*sampled, *scored]),
        )

    def _block_tables(self, scheduled: Sequence[ScheduledRequest]) -> Tensor:
        """[S, most blocks of any], padded with zeros that are never read."""
        tables = [item.request.table.block_ids for item in scheduled]
        width = max(len(table) for table in tables)
        return self._tensor([table + [0] * (width - len(table)) for table in tables])

    def _tensor(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self.device)
