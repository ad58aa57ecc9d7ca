# mypy: ignore-errors
"""Triton kernel: attention of spans of queries, each to a span of past keys and one of its own."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUERIES, _KEYS = 128, 64
"""Of a tile: the fastest of eleven sizes, at 64 channels on an H200."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    places: Tensor,
    most_queries: int,
) -> Tensor:
    """`genvid.tokenizer.adaptok.packed.attend_spans` in half precision, of at most 128 channels.

    Tokens may lie anywhere in memory, the channels of a head beside each other.
    """
    _, heads, channels = query.shape
    attended = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    tiles = triton.cdiv(most_queries, _QUERIES)
    tensors = query, key, value, past_key, past_value, attended
    _attend_tile[(tiles * heads * len(places),)](
        *tensors,
        places,
        *(stride for tensor in tensors for stride in tensor.stride()[:2]),
        math.log2(math.e) / math.sqrt(channels),
        tiles,
        heads,
        CHANNELS=channels,
        PADDED=max(16, triton.next_power_of_2(channels)),
        QUERIES=_QUERIES,
        KEYS=_KEYS,
        num_warps=4,
        num_stages=3,
    )
    return attended


@triton.jit
def _attend_tile(
    queries,
    keys,
    values,
    past_keys,
    past_values,
    attended,
    places,
    query_stride,
    query_head,
    key_stride,
    key_head,
    value_stride,
    value_head,
    past_key_stride,
    past_key_head,
    past_value_stride,
    past_value_head,
    attended_stride,
    attended_head,
    scale,
    tiles,
    heads,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One head of a tile of queries of one span, with a running softmax (FlashAttention, arXiv 2205.14135)."""
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % heads
    span = places + 6 * (tl.program_id(0) // (tiles * heads))
    start = tl.load(span) + QUERIES * tile
    end = tl.load(span + 1)
    if start < end:
        channel = tl.arange(0, PADDED)
        row = (start + tl.arange(0, QUERIES)).to(tl.int64)
        cells = (row < end)[:, None] & (channel < CHANNELS)[None, :]
        query = tl.load(
            queries + row[:, None] * query_stride + head * query_head + channel[None, :], mask=cells, other=0.0
        )
        highest = tl.full([QUERIES], -1e30, tl.float32)
        weight = tl.full([QUERIES], 0.0, tl.float32)
        summed = tl.full([QUERIES, PADDED], 0.0, tl.float32)
        highest, weight, summed = _attend_span(
            query, highest, weight, summed, past_keys + head * past_key_head, past_values + head * past_value_head,
            past_key_stride, past_value_stride, span + 2, scale, CHANNELS, PADDED, KEYS,
        )  # fmt: skip
        highest, weight, summed = _attend_span(
            query, highest, weight, summed, keys + head * key_head, values + head * value_head,
            key_stride, value_stride, span + 4, scale, CHANNELS, PADDED, KEYS,
        )  # fmt: skip
        result = summed / tl.where(weight > 0, weight, 1.0)[:, None]
        tl.store(
            attended + row[:, None] * attended_stride + head * attended_head + channel[None, :],
            result.to(attended.dtype.element_ty),
            mask=cells,
        )


@triton.jit
def _attend_span(
    query,
    highest,
    weight,
    summed,
    keys,
    values,
    key_stride,
    value_stride,
    span,
    scale,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One head of the keys between the first and the end at `span`."""
    begin = tl.load(span)
    count = tl.load(span + 1) - begin
    whole = count // KEYS * KEYS
    keys += begin.to(tl.int64) * key_stride
    values += begin.to(tl.int64) * value_stride
    for first in range(0, whole, KEYS):
        highest, weight, summed = _attend_keys(
            query, highest, weight, summed, keys, values, key_stride, value_stride, first, count, scale,
            CHANNELS, PADDED, KEYS, False,
        )  # fmt: skip
    if whole < count:
        highest, weight, summed = _attend_keys(
            query, highest, weight, summed, keys, values, key_stride, value_stride, whole, count, scale,
            CHANNELS, PADDED, KEYS, True,
        )  # fmt: skip
    return highest, weight, summed


@triton.jit
def _attend_keys(
    query,
    highest,
    weight,
    summed,
    keys,
    values,
    key_stride,
    value_stride,
    first,
    count,
    scale,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    KEYS: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """A tile of keys from `first` on, of a span of `count`; if `PARTIAL`, the span may end within it."""
    place = first + tl.arange(0, KEYS)
    key = _rows(keys, place, key_stride, count, CHANNELS, PADDED, PARTIAL)
    value = _rows(values, place, value_stride, count, CHANNELS, PADDED, PARTIAL)
    score = tl.dot(query, tl.trans(key))
    if PARTIAL:
        score = tl.where((place < count)[None, :], score, -float("inf"))
    higher = tl.maximum(tl.max(score, axis=1) * scale, highest)
    faded = tl.exp2(highest - higher)
    share = tl.exp2(score * scale - higher[:, None])
    weight = weight * faded + tl.sum(share, axis=1)
    return higher, weight, tl.dot(share.to(value.dtype), value, summed * faded[:, None])


@triton.jit
def _rows(tokens, place, stride, count, CHANNELS: tl.constexpr, PADDED: tl.constexpr, PARTIAL: tl.constexpr):
    """One head of the tokens at `place`: zeros beyond `count` and beyond its channels, masked only where needed."""
    channel = tl.arange(0, PADDED)[None, :]
    cells = tokens + place[:, None] * stride + channel
    if PARTIAL:
        return tl.load(cells, mask=(place < count)[:, None] & (channel < CHANNELS), other=0.0)
    elif CHANNELS < PADDED:
        return tl.load(cells, mask=tl.broadcast_to(channel < CHANNELS, cells.shape), other=0.0)
    else:
        return tl.load(cells)
