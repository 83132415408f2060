"""How exact a kernel must be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

AssertExact = Callable[[Tensor, Tensor, Tensor], None]


@pytest.fixture
def assert_exact() -> AssertExact:
    """Check a kernel's result against the plain version in the same dtype and in float64.

    Its error may be twice the plain one's. Both are rounded to their dtype, so half a unit in the last place
    of the largest value is nobody's fault and counts as the plain version's error at least.
    """

    def check(fast: Tensor, plain: Tensor, exact: Tensor) -> None:
        assert fast.shape == exact.shape
        assert fast.dtype == plain.dtype
        if fast.numel() == 0:
            return
        rounding = exact.abs().max() * torch.finfo(fast.dtype).eps / 2
        allowed = 2 * torch.maximum((plain.double() - exact).abs().max(), rounding)
        assert (fast.double() - exact).abs().max() <= allowed

    return check
