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
    longest: int,
    *,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """`genvid.tokenizer.adaptok.packed.attend_spans` in half precision, of at most 128 channels; and for `gradients`
    the binary logarithms (Q, H) of the sums of the softmax.

    `causal`: of its own keys a query attends to those up to its own place. Tokens may lie anywhere in memory, the
    channels of a head beside each other.
    """
    count, heads, channels = query.shape
    attended = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    sums = torch.empty(count, heads, dtype=torch.float32, device=query.device)
    tiles = triton.cdiv(longest, _QUERIES)
    tensors = query, key, value, past_key, past_value, attended
    _attend_tile[(tiles * heads * len(places),)](
        *tensors,
        sums,
        places,
        *strides(*tensors),
        math.log2(math.e) / math.sqrt(channels),
        tiles,
        heads,
        CHANNELS=channels,
        PADDED=max(16, triton.next_power_of_2(channels)),
        QUERIES=_QUERIES,
        KEYS=_KEYS,
        CAUSAL=causal,
        num_warps=4,
        num_stages=3,
    )
    return attended, sums


def strides(*tensors: Tensor) -> list[int]:
    """Of tokens and of heads."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


@triton.jit
def _attend_tile(
    queries,
    keys,
    values,
    past_keys,
    past_values,
    attended,
    sums,
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
    CAUSAL: tl.constexpr,
):
    """One head of a tile of queries of one span, with a running softmax (FlashAttention, arXiv 2205.14135)."""
    head, span, start, end = tile_of_span(places, tiles, heads, QUERIES)
    if start < end:
        row = (start + tl.arange(0, QUERIES)).to(tl.int64)
        query = rows(queries + head * query_head, row, query_stride, end, CHANNELS, PADDED, True)
        highest = tl.full([QUERIES], -1e30, tl.float32)
        weight = tl.full([QUERIES], 0.0, tl.float32)
        summed = tl.full([QUERIES, PADDED], 0.0, tl.float32)
        highest, weight, summed = _attend_span(
            query, row, highest, weight, summed, past_keys + head * past_key_head, past_values + head * past_value_head,
            past_key_stride, past_value_stride, span + 2, start, scale, CHANNELS, PADDED, QUERIES, KEYS, False,
        )  # fmt: skip
        highest, weight, summed = _attend_span(
            query, row, highest, weight, summed, keys + head * key_head, values + head * value_head,
            key_stride, value_stride, span + 4, start, scale, CHANNELS, PADDED, QUERIES, KEYS, CAUSAL,
        )  # fmt: skip
        weight = tl.where(weight > 0, weight, 1.0)
        summed /= weight[:, None]
        store_rows(attended + head * attended_head, row, attended_stride, end, summed, CHANNELS, PADDED)
        tl.store(sums + row * heads + head, highest + tl.log2(weight), mask=row < end)


@triton.jit
def tile_of_span(places, tiles, heads, ROWS: tl.constexpr):
    """Of this program: its head; its row of `places`; the first token of its tile, and the end of the span."""
    program = tl.program_id(0)
    span = places + 6 * (program // (tiles * heads))
    return program // tiles % heads, span, tl.load(span) + ROWS * (program % tiles), tl.load(span + 1)


@triton.jit
def _attend_span(
    query,
    row,
    highest,
    weight,
    summed,
    keys,
    values,
    key_stride,
    value_stride,
    span,
    start,
    scale,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """One head of the keys between the first and the end at `span`."""
    begin, whole, count = keys_of_tile(span, start, QUERIES, KEYS, CAUSAL)
    keys += begin.to(tl.int64) * key_stride
    values += begin.to(tl.int64) * value_stride
    for first in range(0, whole, KEYS):
        highest, weight, summed = _attend_keys(
            query, row - begin, highest, weight, summed, keys, values, key_stride, value_stride, first, count, scale,
            CHANNELS, PADDED, KEYS, False, False,
        )  # fmt: skip
    for first in range(whole, count, KEYS):
        highest, weight, summed = _attend_keys(
            query, row - begin, highest, weight, summed, keys, values, key_stride, value_stride, first, count, scale,
            CHANNELS, PADDED, KEYS, True, CAUSAL,
        )  # fmt: skip
    return highest, weight, summed


@triton.jit
def keys_of_tile(span, start, QUERIES: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr):
    """The first key at `span`; how many from it on are whole tiles of which no query from `start` on is without a key;
    and how many these queries attend to."""
    begin = tl.load(span)
    count = tl.load(span + 1) - begin
    whole = count
    if CAUSAL:
        count = tl.minimum(count, start + QUERIES - begin)
        whole = tl.minimum(count, start + 1 - begin)
    return begin, whole // KEYS * KEYS, count


@triton.jit
def _attend_keys(
    query,
    place,
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
    CAUSAL: tl.constexpr,
):
    """A tile of keys from `first` on, of a span of `count`; if `PARTIAL`, the span may end within it."""
    other = first + tl.arange(0, KEYS)
    key = rows(keys, other, key_stride, count, CHANNELS, PADDED, PARTIAL)
    value = rows(values, other, value_stride, count, CHANNELS, PADDED, PARTIAL)
    score = tl.dot(query, tl.trans(key))
    if PARTIAL:
        score = tl.where((other < count)[None, :], score, -float("inf"))
    if CAUSAL:
        score = tl.where(other[None, :] <= place[:, None], score, -float("inf"))
    higher = tl.maximum(tl.max(score, axis=1) * scale, highest)
    faded = tl.exp2(highest - higher)
    share = tl.exp2(score * scale - higher[:, None])
    weight = weight * faded + tl.sum(share, axis=1)
    return higher, weight, tl.dot(share.to(value.dtype), value, summed * faded[:, None])


@triton.jit
def rows(tokens, place, stride, count, CHANNELS: tl.constexpr, PADDED: tl.constexpr, PARTIAL: tl.constexpr):
    """One head of the tokens at `place`: zeros from `count` on and beyond its channels, masked only where needed."""
    channel = tl.arange(0, PADDED)[None, :]
    cells = tokens + place[:, None] * stride + channel
    if PARTIAL:
        return tl.load(cells, mask=(place < count)[:, None] & (channel < CHANNELS), other=0.0)
    elif CHANNELS < PADDED:
        return tl.load(cells, mask=tl.broadcast_to(channel < CHANNELS, cells.shape), other=0.0)
    else:
        return tl.load(cells)


@triton.jit
def store_rows(tokens, place, stride, count, rows, CHANNELS: tl.constexpr, PADDED: tl.constexpr):
    """Store one head of the tokens at `place`, up to `count`."""
    channel = tl.arange(0, PADDED)[None, :]
    cells = tokens + place[:, None] * stride + channel
    tl.store(cells, rows.to(tokens.dtype.element_ty), mask=(place < count)[:, None] & (channel < CHANNELS))
