# mypy: ignore-errors
"""Triton kernels between the products of a layer, of float32 rows and of products in half precision.

Each reads and writes a row once, where separate operations read and write it two or three times.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


def normed(layer: nn.LayerNorm, x: Tensor, added: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`layer` of `x` (..., W), or of `x + added` -> (..., W), rounded to `dtype`."""
    rows = x.reshape(-1, x.shape[-1])
    others = rows if added is None else added.reshape(rows.shape)
    result = torch.empty(rows.shape, dtype=dtype, device=x.device)
    _norm_row[(len(rows),)](
        rows, others, layer.weight, layer.bias, result, rows.shape[1], layer.eps,
        ADDED=added is not None, PADDED=triton.next_power_of_2(rows.shape[1]), num_warps=4,
    )  # fmt: skip
    return result.view(x.shape)


def summed(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`x + first + second`, three of one shape."""
    x, first, second = (part.contiguous() for part in (x, first, second))
    result = torch.empty_like(x)
    _sum_part[(triton.cdiv(x.numel(), _PART),)](x, first, second, result, x.numel(), PART=_PART, num_warps=4)
    return result


_PART = 2048
"""Elements of a program."""


@triton.jit
def _norm_row(
    rows, others, weights, biases, normed, width, eps, ADDED: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    channel = tl.arange(0, PADDED)
    inside = channel < width
    row = tl.program_id(0).to(tl.int64) * width
    x = tl.load(rows + row + channel, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        x += tl.load(others + row + channel, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x) / width, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred) / width + eps)
    weight = tl.load(weights + channel, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(biases + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row + channel, (centred * scale * weight + bias).to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _sum_part(x, first, second, summed, count, PART: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * PART + tl.arange(0, PART)
    there = place < count
    total = tl.load(x + place, mask=there).to(tl.float32) + tl.load(first + place, mask=there).to(tl.float32)
    total += tl.load(second + place, mask=there).to(tl.float32)
    tl.store(summed + place, total.to(summed.dtype.element_ty), mask=there)
