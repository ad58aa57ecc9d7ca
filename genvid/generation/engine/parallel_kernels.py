# mypy: ignore-errors
"""Triton kernel: attention of several rows of each slot, which reads keys and values once for all of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def attend_chunks_together(
    queries: Tensor, cache: Tensor, lengths: Tensor, limit: int, together: int, chunk: int, tile: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`genvid.generation.engine.kernels.attend_chunks` of `together` consecutive rows of each slot."""
    _, _, kv_heads, capacity, width = cache.shape
    rows, heads, _ = queries.shape
    splits = -(-limit // chunk)
    partial = torch.empty(rows, heads, splits, width, dtype=torch.float32, device=queries.device)
    greatest = torch.empty(rows, heads, splits, dtype=torch.float32, device=queries.device)
    total = torch.empty_like(greatest)
    _attend_chunk_together[(heads, splits, rows // together)](
        queries,
        cache[0],
        cache[1],
        lengths,
        partial,
        greatest,
        total,
        capacity,
        splits,
        width**-0.5,
        HEADS=heads,
        KV_HEADS=kv_heads,
        WIDTH=width,
        WIDTH_PADDED=max(16, triton.next_power_of_2(width)),
        CHUNK=chunk,
        TILE=tile,
        TOGETHER=together,
        TOGETHER_PADDED=max(16, triton.next_power_of_2(together)),
        num_warps=4,
    )
    return partial, greatest, total


@triton.jit
def _attend_chunk_together(
    queries,
    keys,
    values,
    lengths,
    partial,
    greatest,
    total,
    capacity,
    splits,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    TOGETHER: tl.constexpr,
    TOGETHER_PADDED: tl.constexpr,
):
    """One head of the rows of one slot over one chunk: as `_attend_chunk`, of all rows at once."""
    head = tl.program_id(0)
    split = tl.program_id(1)
    slot = tl.program_id(2).to(tl.int64)
    place = tl.arange(0, TOGETHER_PADDED)
    real = place < TOGETHER
    row = slot * TOGETHER + place
    length = tl.load(lengths + row, mask=real, other=0).to(tl.int32)
    longest = tl.max(length, axis=0)
    first = split * CHUNK
    if first < longest:
        last = tl.minimum(first + CHUNK, longest)
        channel = tl.arange(0, WIDTH_PADDED)
        inside = channel < WIDTH
        cells = real[:, None] & inside[None, :]
        query = tl.load(queries + (row[:, None] * HEADS + head) * WIDTH + channel[None, :], mask=cells, other=0.0)
        lines = (slot * KV_HEADS + head // (HEADS // KV_HEADS)) * capacity
        highest = tl.full([TOGETHER_PADDED], -1e30, tl.float32)
        weight = tl.full([TOGETHER_PADDED], 0.0, tl.float32)
        summed = tl.full([TOGETHER_PADDED, WIDTH_PADDED], 0.0, tl.float32)
        for offset in range(0, CHUNK, TILE):
            start = first + offset
            if start < last:
                position = start + tl.arange(0, TILE)
                at = (lines + position)[:, None] * WIDTH + channel[None, :]
                mask = (position < last)[:, None] & inside[None, :]
                key = tl.load(keys + at, mask=mask, other=0.0)
                value = tl.load(values + at, mask=mask, other=0.0)
                there = position[None, :] < length[:, None]
                score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
                score = tl.where(there, score, -1e30)
                higher = tl.maximum(tl.max(score, axis=1), highest)
                faded = tl.exp(highest - higher)
                share = tl.where(there, tl.exp(score - higher[:, None]), 0.0)
                seen = tl.dot(share.to(value.dtype), value, input_precision="ieee")
                summed = summed * faded[:, None] + seen
                weight = weight * faded + tl.sum(share, axis=1)
                highest = higher
        cell = (row * HEADS + head) * splits + split
        tl.store(partial + cell[:, None] * WIDTH + channel[None, :], summed, mask=cells)
        tl.store(greatest + cell, highest, mask=real)
        tl.store(total + cell, weight, mask=real)
