from __future__ import annotations

import pytest
import torch

from tests.kernels.harness import DTYPES, HEAD_DIMS, Backend, check_op, covering

# A row's elements share the error of its norm: that of a single long row is a matter of luck.
ROWS = [(0, 64), (1, 64), (20, 576), (50, 33), (20, 4096)]


@pytest.mark.parametrize(("shape", "dtype"), covering(ROWS, DTYPES))
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype, backend: Backend) -> None:
    torch.manual_seed(0)
    # As for the queries and keys of some models: a slice of a wider row.
    x = (3 * torch.randn(shape[0], shape[1] + 8)).to(dtype)[:, : shape[1]]
    check_op(backend, lambda kernels: kernels.rms_norm, x, torch.randn(shape[1]).to(dtype), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_heads(dtype: torch.dtype, backend: Backend) -> None:
    """Any leading dimensions, and strides that no single one describes: some models norm each head."""
    torch.manual_seed(0)
    x, residual = torch.randn(2, 9, 6, 64).to(dtype)[:, :, 2:5]
    weight = torch.randn(64).to(dtype)
    check_op(backend, lambda kernels: kernels.rms_norm, x, weight, 1e-5)
    check_op(backend, lambda kernels: kernels.fused_add_rms_norm, x, residual, weight, 1e-5)


def test_rms_norm_of_zeros_is_zero(backend: Backend) -> None:
    assert (
        backend.run(lambda kernels: kernels.rms_norm, torch.zeros(2, 8), torch.ones(8), 1e-5).tolist()
        == [[0.0] * 8] * 2
    )


@pytest.mark.parametrize(("shape", "dtype"), covering(ROWS, DTYPES))
def test_fused_add_rms_norm(shape: tuple[int, int], dtype: torch.dtype, backend: Backend) -> None:
    torch.manual_seed(0)
    x, residual = (3 * torch.randn(2, *shape)).to(dtype)
    check_op(
        backend,
        lambda kernels: kernels.fused_add_rms_norm,
        x,
        residual,
        torch.randn(shape[1]).to(dtype),
        1e-5,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_add_rms_norm_leaves_its_inputs_and_rounds_once(dtype: torch.dtype, backend: Backend) -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(2, 4, 16).to(dtype)
    there = backend.place(x.clone()), backend.place(residual.clone())
    _, total = backend.kernels.fused_add_rms_norm(*there, backend.place(torch.ones(16, dtype=dtype)), 1e-5)
    assert torch.equal(total.cpu(), x + residual)
    assert torch.equal(there[0].cpu(), x)
    assert torch.equal(there[1].cpu(), residual)


@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "head_dim", "dtype"),
    covering([0, 1, 5, 33], [1, 4, 12], HEAD_DIMS, DTYPES),
)
def test_rotary_embedding(
    num_tokens: int, num_heads: int, head_dim: int, dtype: torch.dtype, backend: Backend
) -> None:
    torch.manual_seed(0)
    # As in the model: the heads are a slice of a wider row.
    x = torch.randn(num_tokens, num_heads + 2, head_dim).to(dtype)[:, :num_heads]
    angles = torch.rand(num_tokens, head_dim // 2) * 100
    check_op(
        backend, lambda kernels: kernels.rotary_embedding, x, angles.cos().to(dtype), angles.sin().to(dtype)
    )


def test_rotary_embedding_rotates_each_pair_by_its_angle(backend: Backend) -> None:
    x = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]])  # pairs (1, 0) and (0, 2)
    angles = torch.tensor([[torch.pi / 2, torch.pi]])
    out = backend.run(lambda kernels: kernels.rotary_embedding, x, angles.cos(), angles.sin())
    torch.testing.assert_close(out, torch.tensor([[[0.0, 0.0, 1.0, -2.0]]]))


@pytest.mark.parametrize(("shape", "dtype"), covering([(0, 8), (1, 3072), (65, 34)], DTYPES))
def test_silu_and_mul(shape: tuple[int, int], dtype: torch.dtype, backend: Backend) -> None:
    torch.manual_seed(0)
    check_op(backend, lambda kernels: kernels.silu_and_mul, (4 * torch.randn(shape)).to(dtype))
