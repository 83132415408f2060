from __future__ import annotations

import pytest
import torch

from kernels import load_kernels
from tests.kernels.conftest import AssertExact

FAST, PLAIN = load_kernels("torch"), load_kernels("reference")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 64), (1, 64), (7, 576), (300, 33)])
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype, assert_exact: AssertExact) -> None:
    torch.manual_seed(0)
    x, weight = (3 * torch.randn(shape)).to(dtype), torch.randn(shape[1]).to(dtype)
    exact = PLAIN.rms_norm(x.double(), weight.double(), 1e-5)
    assert_exact(FAST.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5), exact)


def test_rms_norm_of_zeros_is_zero() -> None:
    assert FAST.rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-5).tolist() == [[0.0] * 8] * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 4, 64), (1, 12, 64), (5, 1, 80), (33, 10, 128)])
def test_rotary_embedding(shape: tuple[int, int, int], dtype: torch.dtype, assert_exact: AssertExact) -> None:
    torch.manual_seed(0)
    num_tokens, num_heads, head_dim = shape
    # As in the model: the heads are a slice of a wider row.
    x = torch.randn(num_tokens, num_heads + 2, head_dim).to(dtype)[:, :num_heads]
    angles = torch.rand(num_tokens, head_dim // 2) * 100
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    exact = PLAIN.rotary_embedding(x.double(), cos.double(), sin.double())
    assert_exact(FAST.rotary_embedding(x, cos, sin), PLAIN.rotary_embedding(x, cos, sin), exact)


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_rotary_embedding_rotates_each_pair_by_its_angle(name: str) -> None:
    x = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]])  # pairs (1, 0) and (0, 2)
    angles = torch.tensor([[torch.pi / 2, torch.pi]])
    out = load_kernels(name).rotary_embedding(x, angles.cos(), angles.sin())
    torch.testing.assert_close(out, torch.tensor([[[0.0, 0.0, 1.0, -2.0]]]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (1, 3072), (65, 34)])
def test_silu_and_mul(shape: tuple[int, int], dtype: torch.dtype, assert_exact: AssertExact) -> None:
    torch.manual_seed(0)
    x = (4 * torch.randn(shape)).to(dtype)
    assert_exact(FAST.silu_and_mul(x), PLAIN.silu_and_mul(x), PLAIN.silu_and_mul(x.double()))


@pytest.mark.parametrize("block_size", [1, 8, 16])
@pytest.mark.parametrize("num_tokens", [0, 1, 20])
def test_store_kv_writes_its_slots_and_nothing_else(num_tokens: int, block_size: int) -> None:
    torch.manual_seed(0)
    num_blocks, heads, head_dim = -(-32 // block_size), 3, 4
    slots = torch.randperm(num_blocks * block_size)[:num_tokens]
    # As in the model: both are slices of a wider row.
    rows = torch.randn(num_tokens, 3 * heads, head_dim)
    key, value = rows[:, heads : 2 * heads], rows[:, 2 * heads :]
    caches = torch.randn(2, num_blocks, block_size, heads, head_dim)
    fast, plain = caches.clone(), caches.clone()
    FAST.store_kv(key, value, fast[0], fast[1], slots)
    PLAIN.store_kv(key, value, plain[0], plain[1], slots)
    assert torch.equal(fast, plain)
    assert torch.equal(fast[0].flatten(0, 1)[slots], key)
    untouched = torch.ones(num_blocks * block_size, dtype=torch.bool).index_fill_(0, slots, False)
    assert torch.equal(fast.flatten(1, 2)[:, untouched], caches.flatten(1, 2)[:, untouched])
