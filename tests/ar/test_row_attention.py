"""Attention within rows that lie one after another, against each row alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from genvid.ar.attention import row_attention, row_positions

LENGTHS = [3, 130, 0, 1, 257, 64, 0, 0]
LONGEST = 300
STARTS = torch.tensor([0, *LENGTHS]).cumsum(0).int()


def drawn(dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    """Queries, keys and values, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(sum(LENGTHS), 2, 64, generator=generator) for _ in range(4)]
    return [value.to(device, dtype).requires_grad_() for value in values]


def alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    rows = zip(*(x.transpose(0, 1).split(LENGTHS, 1) for x in (query, key, value)), strict=True)
    found = [functional.scaled_dot_product_attention(*row, is_causal=True) for row in rows if row[0].shape[1]]
    return torch.cat(found, 1).transpose(0, 1)


def test_positions_start_anew_with_every_row():
    wanted = torch.cat([torch.arange(length) for length in LENGTHS])
    assert torch.equal(row_positions(STARTS, sum(LENGTHS)), wanted)


def test_each_row_is_attended_alone():
    *inputs, gradient = drawn()
    ours, theirs = row_attention(*inputs, STARTS, LONGEST), alone(*inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, gradient), torch.autograd.grad(theirs, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
def test_flash_attention_computes_the_same(gpu):
    *inputs, gradient = drawn(torch.bfloat16, gpu)
    *exact, same = drawn()
    ours, theirs = row_attention(*inputs, STARTS.to(gpu), LONGEST), alone(*exact)
    torch.testing.assert_close(ours.cpu().float(), theirs, atol=2e-2, rtol=2e-2)
    for a, b in zip(torch.autograd.grad(ours, inputs, gradient), torch.autograd.grad(theirs, exact, same), strict=True):
        assert (a.cpu().float() - b).norm() < 2e-2 * b.norm()
