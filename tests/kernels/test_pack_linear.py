from __future__ import annotations

import pytest
import torch

from kernels.torch import backend as torch_backend
from kernels.torch.linear import EXACT_ROWS, padded_rows
from tests.kernels.harness import DTYPES, PLAIN, Backend, assert_exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 9, 130])
def test_pack_linear_is_as_exact_as_a_float32_sum_in_any_order(
    num_tokens: int, has_bias: bool, dtype: torch.dtype, backend: Backend
) -> None:
    """oneDNN adds up a row in one go and the plain version in parts, so a multiple of its error says little.

    Any order of adding n float32 products errs by at most n units of roundoff of their absolute sum
    (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); the result is then rounded to its dtype.
    """
    torch.manual_seed(0)
    num_inputs = 48
    x, weight = torch.randn(num_tokens, num_inputs).to(dtype), torch.randn(65, num_inputs).to(dtype)
    bias = torch.randn(65).to(dtype) if has_bias else None
    wide_bias = bias.double() if bias is not None else None
    exact = PLAIN.pack_linear(weight.double(), wide_bias)(x.double())
    absolute = PLAIN.pack_linear(weight.double().abs(), None if wide_bias is None else wide_bias.abs())
    summing = (num_inputs + 1) * torch.finfo(torch.float32).eps / 2 * absolute(x.double().abs())
    # The plain version rounds once more where it adds the bias.
    rounding = (1 + has_bias) * torch.finfo(dtype).eps / 2 * absolute(x.double().abs())
    linear = backend.kernels.pack_linear(backend.place(weight), backend.place(bias))
    out = linear(backend.place(x)).cpu()
    assert out.dtype == dtype
    assert ((out.double() - exact).abs() <= summing + rounding).all()
    wide = linear.wide(backend.place(x)).cpu()
    assert wide.dtype == torch.float32
    rounds_first = backend.kernels.pack_linear is torch_backend.KERNELS.pack_linear
    assert ((wide.double() - exact).abs() <= summing + rounding * rounds_first).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("num_tokens", "num_outputs", "num_inputs"), [(7, 48, 64), (40, 33, 47), (130, 96, 64)]
)
def test_a_gated_linear_layer_is_its_parts(
    num_tokens: int, num_outputs: int, num_inputs: int, has_bias: bool, dtype: torch.dtype, backend: Backend
) -> None:
    torch.manual_seed(0)
    x, weight = (
        torch.randn(num_tokens, num_inputs).to(dtype),
        torch.randn(2 * num_outputs, num_inputs).to(dtype),
    )
    bias = torch.randn(2 * num_outputs).to(dtype) if has_bias else None
    wide_bias = bias.double() if bias is not None else None
    exact = PLAIN.pack_gated_linear(weight.double(), wide_bias)(x.double())
    plain = PLAIN.pack_gated_linear(weight, bias)(x)
    gated = backend.kernels.pack_gated_linear(backend.place(weight), backend.place(bias))
    assert_exact(gated(backend.place(x)).cpu(), plain, exact)


def test_few_numbers_of_rows_are_computed_each_hardly_more_than_is_needed() -> None:
    numbers = range(2049)
    padded = [padded_rows(number) for number in numbers]
    assert padded[: EXACT_ROWS + 1] == list(numbers)[: EXACT_ROWS + 1]
    assert len(set(padded[1:])) == 76
    added = [more - number for number, more in zip(numbers, padded, strict=True)]
    assert all(0 <= each < max(8, number / 8 + 1) for number, each in zip(numbers, added, strict=True))
