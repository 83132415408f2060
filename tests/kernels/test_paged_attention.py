from __future__ import annotations

import random

import pytest
import torch

from kernels import load_kernels
from tests.kernels.conftest import AssertExact

FAST, PLAIN = load_kernels("torch"), load_kernels("reference")
HEADS = [(4, 4), (8, 2), (9, 3), (5, 1)]
NOT_A_BLOCK = 10**9

# (query_len, kv_len) of each sequence.
BATCHES = {
    "empty": [],
    "prefill": [(1, 1), (17, 17), (40, 40)],
    "chunks": [(5, 21), (16, 17), (2, 33)],
    "decode": [(1, 7), (1, 7), (1, 100), (1, 33), (1, 1)],
    "decode of very different lengths": [(1, 700), (1, 3), (1, 200), (1, 650), (1, 129)],
    "decodes beyond one gather": [(1, 1100 + i) for i in range(5)],
    "mixed": [(1, 30), (9, 9), (1, 64), (6, 50), (1, 2)],
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
        self.query = torch.randn(sum(self.query_lens), num_heads, head_dim)
        self.caches = torch.full((2, num_blocks, block_size, kv_heads, head_dim), float("nan"))
        for row, (table, (query_len, kv_len)) in enumerate(zip(tables, batch, strict=True)):
            first = max(0, kv_len - query_len - (sliding_window or kv_len) + 1)
            self.block_tables[row, : first // block_size] = NOT_A_BLOCK
            for position in range(first, kv_len):
                slot = table[position // block_size], position % block_size
                self.caches[:, *slot] = torch.randn(2, kv_heads, head_dim)

    def run(self, backend: str, dtype: torch.dtype, rounded_to: torch.dtype) -> torch.Tensor:
        attention = load_kernels(backend).plan_attention(
            self.query_lens,
            self.kv_lens,
            self.block_tables,
            self.block_size,
            self.scale,
            self.sliding_window,
        )
        keys, values = self.caches.to(rounded_to).to(dtype)
        return attention(self.query.to(rounded_to).to(dtype), keys, values)


@pytest.mark.parametrize("block_size", [1, 8, 16, 32])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("batch", ["mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layout(
    batch: str,
    heads: tuple[int, int],
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    assert_exact: AssertExact,
) -> None:
    case = Case(BATCHES[batch], heads, head_dim, block_size)
    assert_exact(
        case.run("torch", dtype, dtype),
        case.run("reference", dtype, dtype),
        case.run("reference", torch.float64, dtype),
    )


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("heads", [(9, 3), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_batch(
    batch: str, heads: tuple[int, int], dtype: torch.dtype, assert_exact: AssertExact
) -> None:
    case = Case(BATCHES[batch], heads, 64, 16)
    assert_exact(
        case.run("torch", dtype, dtype),
        case.run("reference", dtype, dtype),
        case.run("reference", torch.float64, dtype),
    )


@pytest.mark.parametrize("sliding_window", [1, 2, 16, 33, 1000])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sliding_window_hides_what_lies_before_it(
    batch: str, sliding_window: int, dtype: torch.dtype, assert_exact: AssertExact
) -> None:
    case = Case(BATCHES[batch], (4, 2), 64, 8, sliding_window)
    assert_exact(
        case.run("torch", dtype, dtype),
        case.run("reference", dtype, dtype),
        case.run("reference", torch.float64, dtype),
    )


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("query_len", [1, 5])
def test_a_window_is_attention_over_a_sequence_cut_before_it(backend: str, query_len: int) -> None:
    """The last of 30 tokens with a window of 7 is the last of 7 tokens: the definition, not a formula."""
    case = Case([(query_len, 30)], (4, 2), 8, 1, sliding_window=7)
    last = case.run(backend, torch.float64, torch.float64)[-1]
    case.sliding_window, case.query_lens, case.kv_lens = None, [1], [7]
    case.block_tables, case.query = case.block_tables[:, 23:], case.query[-1:]
    torch.testing.assert_close(last, case.run(backend, torch.float64, torch.float64)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_token_alone_gets_its_own_value(backend: str) -> None:
    case = Case([(1, 1)], (4, 2), 8, 16)
    value = case.caches[1, case.block_tables[0, 0], 0]
    assert torch.equal(case.run(backend, torch.float32, torch.float32)[0], value.repeat_interleave(2, 0))
