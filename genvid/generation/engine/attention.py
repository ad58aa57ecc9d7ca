"""Attention of new tokens over a cache of keys and values.

N tokens of a pass, H heads, E heads of keys and values, D channels of a head, C positions of the cache.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from genvid.hardware import hardware


class Attention(Protocol):
    """The part of a layer that reads and writes the cache.

    `slots` None: `together` consecutive tokens are of one slot, token i of slot i // together.
    """

    def append(
        self,
        qkv: Tensor,
        cache: Tensor,
        slots: Tensor | None,
        positions: Tensor,
        rotary: tuple[Tensor, Tensor],
        together: int = 1,
    ) -> Tensor:
        """(N, (H + 2E) D) -> rotated queries (N, H, D); writes rotated keys and values to `positions` of the cache."""
        ...

    def attend(
        self, queries: Tensor, cache: Tensor, slots: Tensor | None, lengths: Tensor, limit: int, together: int = 1
    ) -> Tensor:
        """(N, H, D) queries over the first (N,) `lengths` <= `limit` positions of (2, slots, E, C, D) -> (N, H D).

        The result of tokens of length 0 is finite and unspecified.
        """
        ...


class PlainAttention:
    """PyTorch's attention: every row reads `limit` positions."""

    def append(
        self,
        qkv: Tensor,
        cache: Tensor,
        slots: Tensor | None,
        positions: Tensor,
        rotary: tuple[Tensor, Tensor],
        together: int = 1,
    ) -> Tensor:
        kv_heads, width = cache.shape[2], cache.shape[4]
        split = qkv.view(len(qkv), -1, width)
        cos, sin = (table[positions][:, None] for table in rotary)
        turned = split[:, :-kv_heads].float()
        low, high = turned.chunk(2, -1)
        turned = (turned * cos + torch.cat([-high, low], -1) * sin).to(qkv.dtype)
        rows = torch.arange(len(qkv), device=qkv.device) // together if slots is None else slots
        cache[0, rows, :, positions] = turned[:, -kv_heads:]
        cache[1, rows, :, positions] = split[:, -kv_heads:]
        return turned[:, :-kv_heads]

    def attend(
        self, queries: Tensor, cache: Tensor, slots: Tensor | None, lengths: Tensor, limit: int, together: int = 1
    ) -> Tensor:
        keys, values = (cache[:, :, :, :limit] if slots is None else cache[:, slots, :, :limit]).unbind(0)
        filled = torch.arange(limit, device=lengths.device) < lengths.clamp(min=1)[:, None]
        filled = filled.view(-1, 1, together, limit)
        grouped, side_by_side = keys.shape[1] < queries.shape[1], queries.view(-1, together, *queries.shape[1:])
        attended = functional.scaled_dot_product_attention(
            side_by_side.transpose(1, 2), keys, values, attn_mask=filled, enable_gqa=grouped
        )
        return attended.transpose(1, 2).flatten(0, 1).flatten(1)


def plain_or_triton(device: torch.device) -> Attention:
    """Triton attention, which reads only filled positions, where its kernels run; else PyTorch's."""
    if not hardware(device).kernels:
        return PlainAttention()
    from genvid.generation.engine.kernels import TritonAttention

    return TritonAttention()
