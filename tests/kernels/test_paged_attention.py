from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import (
    BLOCK_SIZES,
    DTYPES,
    HEAD_DIMS,
    HEADS,
    Backend,
    assert_exact,
    covering,
)

CPU = Backend("reference", "cpu")
NOT_A_BLOCK = 10**9

# (query_len, kv_len) of each sequence.
BATCHES = {
    "prefill": [(1, 1), (17, 17), (40, 40)],
    "chunks": [(5, 21), (16, 17), (2, 33)],
    "decode": [(1, kv_len) for kv_len in (7, 7, 100, 33, 1, 2, 64, 65, 16, 31)],
    "mixed": [(1, 30), (9, 9), (1, 64), (6, 50), (1, 2)],
}
# For what is no slower than it must be.
LONG_BATCHES = {
    "decode of very different lengths": [(1, 700), (1, 3), (1, 200), (1, 650), (1, 129)],
    "decodes beyond one gather": [(1, 1100 + i) for i in range(5)],
    "thousands": [(1, 5000), (40, 3100), (1, 1), (1, 2900)],
}


class Case:
    """Random queries over a cache where every slot that must not be read is NaN."""

    def __init__(
        self,
        batch: list[tuple[int, int]],
        heads: tuple[int, int],
        head_dim: int,
        block_size: int,
        sliding_window: int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        rng = random.Random(0)
        torch.manual_seed(0)
        num_heads, kv_heads = heads
        self.block_size = block_size
        self.scale = head_dim**-0.5
        self.sliding_window = sliding_window
        self.query_lens = [query_len for query_len, _ in batch]
        self.kv_lens = [kv_len for _, kv_len in batch]
        counts = [-(-kv_len // block_size) for kv_len in self.kv_lens]
        num_blocks = sum(counts) + 3
        free = rng.sample(range(num_blocks), num_blocks)
        tables = [[free.pop() for _ in range(count)] for count in counts]
        width = max(counts, default=0) + 2
        padded = [table + [NOT_A_BLOCK] * (width - len(table)) for table in tables]
        self.block_tables = torch.tensor(padded, dtype=torch.int64).view(len(batch), width)
        # As in the model: the queries are a slice of a wider row.
        row = torch.randn(sum(self.query_lens), num_heads + kv_heads, head_dim).to(dtype)
        self.query = row[:, :num_heads]
        self.caches = torch.full((2, num_blocks, block_size, kv_heads, head_dim), float("nan"), dtype=dtype)
        for index, (table, (query_len, kv_len)) in enumerate(zip(tables, batch, strict=True)):
            first = max(0, kv_len - query_len - (sliding_window or kv_len) + 1)
            self.block_tables[index, : first // block_size] = NOT_A_BLOCK
            positions = torch.arange(first, kv_len)
            blocks = torch.tensor(table, dtype=torch.int64)[positions // block_size]
            tokens = torch.randn(2, len(positions), kv_heads, head_dim).to(dtype)
            self.caches[:, blocks, positions % block_size] = tokens

    def run(self, backend: Backend, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and the output that comes with its log-sum-exp."""
        attention = backend.kernels.plan_attention(
            self.query_lens,
            self.kv_lens,
            backend.place(self.block_tables),
            self.block_size,
            self.scale,
            self.sliding_window,
        )
        tensors = self.query, *self.caches
        inputs = [backend.place(value if dtype is None else value.to(dtype)) for value in tensors]
        out, lse = attention.with_lse(*inputs)
        return attention(*inputs).cpu(), out.cpu(), lse.cpu()

    def check(self, backend: Backend) -> None:
        """Against the plain version in the same dtype and in float64, with and without the log-sum-exp."""
        plain, exact = self.run(CPU), self.run(CPU, torch.float64)
        for ours, theirs, truth in zip(self.run(backend), plain, exact, strict=True):
            assert_exact(ours, theirs, truth)


@pytest.mark.parametrize(
    ("batch", "heads", "head_dim", "block_size", "sliding_window", "dtype"),
    covering([*BATCHES], HEADS, HEAD_DIMS, BLOCK_SIZES, [None, 1, 5, 33], DTYPES),
)
def test_paged_attention(
    batch: str,
    heads: tuple[int, int],
    head_dim: int,
    block_size: int,
    sliding_window: int | None,
    dtype: torch.dtype,
    backend: Backend,
) -> None:
    Case(BATCHES[batch], heads, head_dim, block_size, sliding_window, dtype).check(backend)


@pytest.mark.parametrize(("batch", "dtype"), covering([*LONG_BATCHES], DTYPES))
def test_paged_attention_over_thousands_of_tokens(batch: str, dtype: torch.dtype, backend: Backend) -> None:
    lens = LONG_BATCHES[batch]
    if backend.is_interpreted:
        lens = [(min(query_len, 20), min(kv_len, 300)) for query_len, kv_len in lens]
    Case(lens, (4, 2), 64, 16, dtype=dtype).check(backend)


@pytest.mark.parametrize("group", [1, 2, 8, 24, 71])
@pytest.mark.parametrize("query_len", [1, 3])
def test_any_number_of_heads_shares_a_key(query_len: int, group: int, backend: Backend) -> None:
    lens = [(query_len, query_len + before) for before in range(0, 16, 3)]
    Case(lens, (2 * group, 2), 32, 8, dtype=torch.float32).check(backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_batch_has_no_output(dtype: torch.dtype, backend: Backend) -> None:
    Case([], (4, 2), 64, 16, dtype=dtype).check(backend)


@pytest.mark.parametrize("query_len", [1, 5])
def test_a_window_is_attention_over_a_sequence_cut_before_it(query_len: int, backend: Backend) -> None:
    """The last of 30 tokens with a window of 7 is the last of 7 tokens: the definition, not a formula."""
    case = Case([(query_len, 30)], (4, 2), 8, 1, 7, torch.float32)
    last = case.run(backend)[0][-1]
    case.sliding_window, case.query_lens, case.kv_lens = None, [1], [7]
    case.block_tables, case.query = case.block_tables[:, 23:], case.query[-1:]
    torch.testing.assert_close(last, case.run(backend)[0][0])


def test_a_token_alone_gets_its_own_value(backend: Backend) -> None:
    case = Case([(1, 1)], (4, 2), 8, 16, dtype=torch.float32)
    value = case.caches[1, case.block_tables[0, 0], 0]
    assert torch.equal(case.run(backend)[0][0], value.repeat_interleave(2, 0))
