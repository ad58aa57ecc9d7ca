"""Kernels between the products of a layer equal torch's operations; on a CPU interpreted (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from genvid.tokenizer.layers import TransformerBlock

pytestmark = pytest.mark.gpu
HALF = torch.float16
"""Triton's interpreter has no bfloat16."""


@pytest.fixture
def kernels(device: torch.device) -> ModuleType:
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("on a CPU kernels are interpreted: TRITON_INTERPRET=1, before anything starts")
    return pytest.importorskip("genvid.tokenizer.layer_kernels")


@pytest.mark.parametrize("width", [24, 64, 100])
@pytest.mark.parametrize("parts", ["sum", "alone", "last rows"])
def test_norms_of_sums(kernels: ModuleType, device: torch.device, width: int, parts: str) -> None:
    torch.manual_seed(0)
    x, added = torch.randn(2, 7, width, device=device) * 3 + 1, torch.randn(2, 7, width, device=device).to(HALF)
    if parts == "last rows":
        x, added = x[:, 3:], added[:, 3:]
    layer = nn.LayerNorm(width, eps=1e-3).to(device)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    with torch.no_grad():
        expected = layer(x if parts == "alone" else x + added)
    found = kernels.normed(layer, x, None if parts == "alone" else added, HALF)
    assert found.dtype == HALF
    torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=2e-3)


def test_sums(kernels: ModuleType, device: torch.device) -> None:
    """To the bit, of more than one program."""
    x = torch.randn(3, 50, 64, device=device)
    first, second = torch.randn(2, 3, 50, 64, device=device).to(HALF).unbind(0)
    assert kernels.summed(x, first, second).equal(x + first + second)
    assert kernels.summed(x[:, 7:], first[:, 7:], second[:, 7:]).equal((x + first + second)[:, 7:])


@torch.no_grad()
def test_a_layer_with_kernels_is_the_layer_without(kernels: ModuleType, device: torch.device, monkeypatch) -> None:
    torch.manual_seed(0)
    layer, x = TransformerBlock(64, 2).to(device), torch.randn(3, 50, 64, device=device)
    layer.round(HALF)

    def last_tokens(*projected: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(*projected)[:, :, 20:]

    for attend, chosen in ((scaled_dot_product_attention, slice(None)), (last_tokens, slice(20, None))):
        monkeypatch.setattr(TransformerBlock, "_kernels", lambda layer, x: kernels)
        found = layer(x, attend, chosen)
        monkeypatch.setattr(TransformerBlock, "_kernels", lambda layer, x: None)
        torch.testing.assert_close(found, layer(x, attend, chosen), atol=2e-3, rtol=2e-3)
