# mypy: ignore-errors
"""Triton kernels: attention over batch slots that reads only filled cache positions, and drawing a token.

Attention has two steps: sums over chunks of CHUNK positions, then a sum of the chunks. The split is the same for every
row, so the order of additions, and with it the result, does not depend on other rows of the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from genvid.generation.engine.parallel_kernels import attend_chunks_together

CHUNK = 256
"""Positions that one program reads."""
TILE = 64
"""Positions read at a time."""


class TritonAttention:
    """`genvid.generation.engine.attention.Attention` for rows on a GPU."""

    def append(
        self,
        qkv: Tensor,
        cache: Tensor,
        slots: Tensor | None,
        positions: Tensor,
        rotary: tuple[Tensor, Tensor],
        together: int = 1,
    ) -> Tensor:
        _, _, kv_heads, capacity, width = cache.shape
        rows, heads = len(qkv), qkv.shape[1] // width - 2 * kv_heads
        queries = torch.empty(rows, heads, width, dtype=qkv.dtype, device=qkv.device)
        _append[(rows, heads + 2 * kv_heads)](
            qkv,
            queries,
            cache[0],
            cache[1],
            positions if slots is None else slots,
            positions,
            *rotary,
            capacity,
            HEADS=heads,
            KV_HEADS=kv_heads,
            HALF=width // 2,
            HALF_PADDED=triton.next_power_of_2(width // 2),
            TOGETHER=together,
            IDENTITY=slots is None,
            num_warps=1,
        )
        return queries

    def attend(
        self, queries: Tensor, cache: Tensor, slots: Tensor | None, lengths: Tensor, limit: int, together: int = 1
    ) -> Tensor:
        rows, heads, width = queries.shape
        if together > 1:
            partial, greatest, total = attend_chunks_together(queries, cache, lengths, limit, together, CHUNK, TILE)
        else:
            partial, greatest, total = attend_chunks(queries, cache, slots, lengths, limit, CHUNK, TILE)
        attended = torch.empty(rows, heads * width, dtype=queries.dtype, device=queries.device)
        splits = greatest.shape[-1]
        _join_chunks[(rows, heads)](
            partial,
            greatest,
            total,
            lengths,
            attended,
            splits,
            HEADS=heads,
            WIDTH=width,
            WIDTH_PADDED=triton.next_power_of_2(width),
            CHUNK=CHUNK,
            SPLITS_PADDED=triton.next_power_of_2(splits),
            num_warps=1,
        )
        return attended


def attend_chunks(
    queries: Tensor,
    cache: Tensor,
    slots: Tensor | None,
    lengths: Tensor,
    limit: int,
    chunk: int,
    tile: int,
    *,
    overlap: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of queries (B, H, D) to each `chunk` of at most `limit` positions, read in tiles of `tile`.

    Returns weighted sums of values (B, H, chunks, D), greatest scores and sums of weights (B, H, chunks). `overlap`:
    start before the preceding kernel ends.
    """
    _, _, kv_heads, capacity, width = cache.shape
    rows, heads, _ = queries.shape
    splits = -(-limit // chunk)
    partial = torch.empty(rows, heads, splits, width, dtype=torch.float32, device=queries.device)
    greatest = torch.empty(rows, heads, splits, dtype=torch.float32, device=queries.device)
    total = torch.empty_like(greatest)
    _attend_chunk[(heads, splits, rows)](
        queries,
        cache[0],
        cache[1],
        lengths if slots is None else slots,
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
        WIDTH_PADDED=triton.next_power_of_2(width),
        CHUNK=chunk,
        TILE=tile,
        IDENTITY=slots is None,
        OVERLAP=overlap,
        num_warps=4,
        **({"launch_pdl": True} if overlap else {}),
    )
    return partial, greatest, total


@triton.jit
def _append(
    qkv,
    queries,
    keys,
    values,
    slots,
    positions,
    cos,
    sin,
    capacity,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    TOGETHER: tl.constexpr,
    IDENTITY: tl.constexpr,
):
    """One head of one row: rotate it, and store it as a query, a key or a value."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(positions + row)
    slot = row // TOGETHER
    if not IDENTITY:
        slot = tl.load(slots + row)
    at = tl.arange(0, HALF_PADDED)
    inside = at < HALF
    source = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * 2 * HALF
    low = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + HALF + at, mask=inside, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:
        low, high = rotated(low, high, rotation(cos, sin, position * 2 * HALF + at, HALF, inside))
    if head < HEADS:
        store_pair(queries + (row * HEADS + head) * 2 * HALF + at, low, high, HALF, inside)
    elif head < HEADS + KV_HEADS:
        line = (slot * KV_HEADS + head - HEADS) * capacity + position
        store_pair(keys + line * 2 * HALF + at, low, high, HALF, inside)
    else:
        line = (slot * KV_HEADS + head - HEADS - KV_HEADS) * capacity + position
        store_pair(values + line * 2 * HALF + at, low, high, HALF, inside)


@triton.jit
def rotation(cos, sin, at, HALF: tl.constexpr, mask):
    """Cosines and sines of the low and of the high channels of pairs, from the tables; no rotation outside `mask`."""
    cos_low = tl.load(cos + at, mask=mask, other=1.0)
    cos_high = tl.load(cos + at + HALF, mask=mask, other=1.0)
    sin_low = tl.load(sin + at, mask=mask, other=0.0)
    sin_high = tl.load(sin + at + HALF, mask=mask, other=0.0)
    return cos_low, cos_high, sin_low, sin_high


@triton.jit
def rotated(low, high, angles):
    """Pairs of channels, rotated by the result of `rotation`."""
    cos_low, cos_high, sin_low, sin_high = angles
    return low * cos_low - high * sin_low, high * cos_high + low * sin_high


@triton.jit
def store_pair(target, low, high, HALF: tl.constexpr, mask):
    """The low channels of a head go to `target`, the high ones HALF further."""
    tl.store(target, low.to(target.dtype.element_ty), mask=mask)
    tl.store(target + HALF, high.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _attend_chunk(
    queries,
    keys,
    values,
    slots,
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
    IDENTITY: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One head of one row over one chunk: its unnormalised sum of values, greatest score and sum of weights."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    head = tl.program_id(0)
    split = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    length = tl.load(lengths + row).to(tl.int32)
    first = split * CHUNK
    if first < length:
        slot = row
        if not IDENTITY:
            slot = tl.load(slots + row)
        last = tl.minimum(first + CHUNK, length)
        channel = tl.arange(0, WIDTH_PADDED)
        inside = channel < WIDTH
        query = tl.load(queries + (row * HEADS + head) * WIDTH + channel, mask=inside, other=0.0).to(tl.float32)
        query = query * scale
        lines = (slot * KV_HEADS + head // (HEADS // KV_HEADS)) * capacity
        highest = -1e30
        weight = 0.0
        summed = tl.full([WIDTH_PADDED], 0.0, tl.float32)
        for offset in range(0, CHUNK, TILE):
            start = first + offset
            if start < last:
                position = start + tl.arange(0, TILE)
                there = position < last
                at = (lines + position)[:, None] * WIDTH + channel[None, :]
                mask = there[:, None] & inside[None, :]
                key = tl.load(keys + at, mask=mask, other=0.0).to(tl.float32)
                value = tl.load(values + at, mask=mask, other=0.0).to(tl.float32)
                score = tl.where(there, tl.sum(key * query[None, :], axis=1), -1e30)
                higher = tl.maximum(tl.max(score, axis=0), highest)
                faded = tl.exp(highest - higher)
                share = tl.where(there, tl.exp(score - higher), 0.0)
                summed = summed * faded + tl.sum(share[:, None] * value, axis=0)
                weight = weight * faded + tl.sum(share, axis=0)
                highest = higher
        cell = (row * HEADS + head) * splits + split
        tl.store(partial + cell * WIDTH + channel, summed, mask=inside)
        tl.store(greatest + cell, highest)
        tl.store(total + cell, weight)


@triton.jit
def _join_chunks(
    partial,
    greatest,
    total,
    lengths,
    attended,
    splits,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,
):
    """One head of one row: join the chunks that its length reaches."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    length = tl.load(lengths + row)
    split = tl.arange(0, SPLITS_PADDED)
    there = split * CHUNK < length
    channel = tl.arange(0, WIDTH_PADDED)
    inside = channel < WIDTH
    cell = (row * HEADS + head) * splits + split
    score = tl.load(greatest + cell, mask=there, other=-1e30)
    share = tl.where(there, tl.exp(score - tl.max(score, axis=0)), 0.0)
    weight = tl.sum(share * tl.load(total + cell, mask=there, other=0.0), axis=0)
    mask = there[:, None] & inside[None, :]
    summed = tl.load(partial + cell[:, None] * WIDTH + channel[None, :], mask=mask, other=0.0)
    joined = tl.sum(summed * share[:, None], axis=0) / tl.maximum(weight, 1e-30)
    target = attended + (row * HEADS + head) * WIDTH + channel
    tl.store(target, joined.to(attended.dtype.element_ty), mask=inside)


def draw_tokens(logits: Tensor, allowed: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """(B, V) float32 logits, (B, V) bool, (B,) float64 in (0, 1) -> (B,) ids, by the inverse distribution."""
    rows, outputs = logits.shape
    tokens = torch.empty(rows, dtype=torch.long, device=logits.device)
    padded = triton.next_power_of_2(outputs)
    _draw[(rows,)](
        logits.contiguous(),
        allowed.contiguous(),
        uniform,
        tokens,
        temperature,
        OUTPUTS=outputs,
        PADDED=padded,
        num_warps=min(max(padded // 1024, 1), 16),
    )
    return tokens


@triton.jit
def _draw(logits, allowed, uniform, tokens, temperature, OUTPUTS: tl.constexpr, PADDED: tl.constexpr):
    """One row: the first token whose cumulative weight exceeds `uniform` times the total."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PADDED)
    inside = at < OUTPUTS
    possible = tl.load(allowed + row * OUTPUTS + at, mask=inside, other=0) != 0
    score = tl.load(logits + row * OUTPUTS + at, mask=inside, other=0.0) / temperature
    score = tl.where(possible, score, float("-inf"))
    weight = tl.exp(score - tl.max(score, axis=0)).to(tl.float64)
    summed = tl.cumsum(weight, axis=0)
    target = tl.load(uniform + row) * tl.max(summed, axis=0)
    drawn = tl.min(tl.where((summed > target) & (weight > 0), at, PADDED), axis=0)
    # Rounding may leave nothing above the target.
    last = tl.max(tl.where(weight > 0, at, 0), axis=0)
    tl.store(tokens + row, tl.where(drawn < PADDED, drawn, last).to(tl.int64))
