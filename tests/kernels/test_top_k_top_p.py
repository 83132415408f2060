from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.interface import Kernels, TopKTopP
from tests.kernels.harness import DTYPES, PLAIN, Backend

NEVER = float("-inf")
TOP_KS = [1, 2, 40, 600, 10**6]
TOP_PS = [1e-6, 0.3, 0.9, 0.999999, 1.0]


def op(kernels: Kernels) -> TopKTopP:
    """The op that is tested here."""
    return kernels.top_k_top_p


def rows_of_every_kind(vocab: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [n, vocab] with every pair of a top_k and a top_p."""
    torch.manual_seed(0)
    top_k = torch.tensor(TOP_KS).repeat_interleave(len(TOP_PS))
    top_p = torch.tensor(TOP_PS, dtype=torch.float64).repeat(len(TOP_KS))
    return spread * torch.randn(len(top_k), vocab), top_k, top_p


@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("vocab", [1, 7, 512, 1500])
def test_it_keeps_exactly_what_the_plain_version_keeps(vocab: int, spread: float, backend: Backend) -> None:
    logits, top_k, top_p = rows_of_every_kind(vocab, spread)
    kept = backend.run(op, logits, top_k, top_p)
    assert torch.equal(kept, PLAIN.top_k_top_p(logits, top_k, top_p))


def test_large_nuclei_are_kept_exactly_and_the_input_stays_as_it_is(backend: Backend) -> None:
    """In float64, in which the engine asks, and in numbers for which no few candidates are enough."""
    torch.manual_seed(1)
    logits = torch.cat([torch.randn(20, 3000), 9 * torch.randn(20, 3000)]).double()
    logits[:, 100:200] = NEVER
    top_k = torch.tensor([3000, 3000, 3000, 700, 129]).repeat(8)
    top_p = torch.tensor([0.5, 0.9, 0.999, 0.8, 1.0], dtype=torch.float64).repeat(8)
    before = logits.clone()
    kept = backend.run(op, logits, top_k, top_p)
    assert torch.equal(kept, PLAIN.top_k_top_p(logits, top_k, top_p))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equal_logits_the_first_remain(dtype: torch.dtype, backend: Backend) -> None:
    """Many are equal in 16 bits."""
    logits, top_k, top_p = rows_of_every_kind(900, 1.0)
    logits = logits.to(dtype)
    kept = backend.run(op, logits, top_k, top_p)
    assert ((kept == logits) | (kept == NEVER)).all()
    assert torch.equal(kept, PLAIN.top_k_top_p(logits, top_k, top_p))


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_what_a_row_keeps_depends_on_no_other_row(spread: float, backend: Backend) -> None:
    """Not even which of many equal logits, in small nuclei and in large ones."""
    logits, top_k, top_p = rows_of_every_kind(3000, spread)
    logits = logits.bfloat16().float()
    together = backend.run(op, logits, top_k, top_p)
    for row in range(len(logits)):
        alone = backend.run(op, *(each[row : row + 1] for each in (logits, top_k, top_p)))
        assert torch.equal(alone[0], together[row]), (top_k[row], top_p[row])


def test_the_fewest_likeliest_that_reach_top_p_among_the_top_k(backend: Backend) -> None:
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log().repeat(4, 1)
    top_k = torch.tensor([4, 4, 3, 2])
    top_p = torch.tensor([0.6, 0.75, 0.5, 1.0])  # of the 3 likeliest, 0.4 is 0.44 and 0.3 is 0.33
    kept = backend.run(op, logits, top_k, top_p) > NEVER
    assert kept.int().tolist() == [[1, 0, 1, 0], [1, 0, 1, 1], [1, 0, 1, 0], [1, 0, 1, 0]]


def test_tokens_that_are_ruled_out_stay_out(backend: Backend) -> None:
    logits = torch.tensor([[NEVER, 1.0, NEVER, 0.0]])
    kept = backend.run(op, logits, torch.tensor([4]), torch.tensor([1.0]))
    assert torch.equal(kept, logits)


def test_no_rows(backend: Backend) -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    assert backend.run(op, torch.zeros(0, 900), empty, empty.double()).shape == (0, 900)
