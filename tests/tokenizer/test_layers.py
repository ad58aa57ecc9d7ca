"""The form of GELU in a compiled training step."""

from __future__ import annotations

import torch
from torch.nn.functional import gelu

from genvid.tokenizer.layers import _sigmoid_gelu


def test_a_gelu_by_a_sigmoid_and_its_gradient_are_those_of_the_form_with_a_tanh() -> None:
    x = torch.linspace(-30, 30, 4001, requires_grad=True)
    expected, found = gelu(x, approximate="tanh"), _sigmoid_gelu(x)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_rounded_to_half_precision_it_is_as_near_to_the_exact_one() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    exact, rounded = gelu(x), x.bfloat16()
    assert (_sigmoid_gelu(rounded).float() - exact).norm() < 1.02 * (gelu(rounded).float() - exact).norm()
