from __future__ import annotations

import math

import pytest
import torch

from tests.kernels.harness import DTYPES, Backend, check_op, covering
from tests.kernels.test_paged_attention import Case

NOTHING = float("-inf")


@pytest.mark.parametrize(
    ("shape", "dtype"), covering([(0, 4, 64), (1, 9, 80), (7, 8, 128), (33, 5, 256)], DTYPES)
)
def test_merge_attention_states(shape: tuple[int, int, int], dtype: torch.dtype, backend: Backend) -> None:
    torch.manual_seed(0)
    out_a, out_b = torch.randn(2, *shape).to(dtype)
    lse_a, lse_b = 5 * torch.randn(2, *shape[:2])
    check_op(backend, lambda kernels: kernels.merge_attention_states, out_a, lse_a, out_b, lse_b)


def test_a_state_that_read_nothing_counts_for_nothing(backend: Backend) -> None:
    torch.manual_seed(0)
    out, lse = torch.randn(3, 2, 8), torch.randn(3, 2)
    empty, empty_lse = torch.full_like(out, math.nan), torch.full_like(lse, NOTHING)
    for inputs in ((out, lse, empty, empty_lse), (empty, empty_lse, out, lse)):
        merged, merged_lse = backend.run(lambda kernels: kernels.merge_attention_states, *inputs)
        assert torch.equal(merged, out)
        assert torch.equal(merged_lse, lse)
    nothing, nothing_lse = backend.run(
        lambda kernels: kernels.merge_attention_states, empty, empty_lse, empty, empty_lse
    )
    assert torch.equal(nothing, torch.zeros_like(out))
    assert torch.equal(nothing_lse, empty_lse)


@pytest.mark.parametrize("num_last", [1, 10, 39])
def test_attention_over_two_parts_merges_to_attention_over_the_whole(num_last: int, backend: Backend) -> None:
    """Decode over 40 tokens: the last few through a window, those before as a sequence of their own."""
    case = Case([(1, 40)], (4, 2), 64, 8, dtype=torch.float32)
    whole = case.run(backend)[1:]
    case.sliding_window = num_last
    last = case.run(backend)[1:]
    case.sliding_window, case.kv_lens = None, [40 - num_last]
    first = case.run(backend)[1:]
    for merged, expected in zip(
        backend.run(lambda kernels: kernels.merge_attention_states, *first, *last), whole, strict=True
    ):
        torch.testing.assert_close(merged, expected)
