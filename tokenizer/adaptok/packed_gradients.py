# mypy: ignore-errors
"""Triton kernels: gradients of the attention of spans of queries (`packed_kernels.py`)."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from genvid.tokenizer.adaptok.packed_kernels import keys_of_tile, rows, store_rows, strides, tile_of_span

_LOG2_E = tl.constexpr(math.log2(math.e))
_TILE = 64
"""Queries, and keys, of a tile."""


def gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    sums: Tensor,
    places: Tensor,
    longest: int,
    readers: Tensor,
    longest_reader: int,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values by that of `attended`, where past keys were own ones.

    `readers` (R, 3, 2): spans of keys, and for each two spans of queries that attend to it.
    """
    _, heads, channels = query.shape
    of_queries, of_keys, of_values = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value))
    products = torch.empty_like(sums)
    tiles, key_tiles = (triton.cdiv(count, _TILE) for count in (longest, longest_reader))
    tensors = query, key, value, gradient
    shape = {
        "CHANNELS": channels,
        "PADDED": max(16, triton.next_power_of_2(channels)),
        "QUERIES": _TILE,
        "KEYS": _TILE,
        "CAUSAL": causal,
        "num_warps": 4,
        "num_stages": 3 if channels <= 64 else 2,
    }
    scale = 1 / math.sqrt(channels)
    _query_gradient_tile[(tiles * heads * len(places),)](
        *tensors, attended, of_queries, sums, products, places,
        *strides(*tensors, attended, of_queries), scale, tiles, heads, **shape,
    )  # fmt: skip
    _key_gradient_tile[(key_tiles * heads * len(readers),)](
        *tensors, of_keys, of_values, sums, products, readers,
        *strides(*tensors, of_keys, of_values), scale, key_tiles, heads, **shape,
    )  # fmt: skip
    return of_queries, of_keys, of_values


@triton.jit
def _query_gradient_tile(
    queries,
    keys,
    values,
    gradients,
    attended,
    of_queries,
    sums,
    products,
    places,
    query_stride,
    query_head,
    key_stride,
    key_head,
    value_stride,
    value_head,
    gradient_stride,
    gradient_head,
    attended_stride,
    attended_head,
    result_stride,
    result_head,
    scale,
    tiles,
    heads,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """The gradients of one head of a tile of queries of one span; and the products of what they attended with its
    gradient, which those of the keys need too."""
    head, span, start, end = tile_of_span(places, tiles, heads, QUERIES)
    if start < end:
        row = (start + tl.arange(0, QUERIES)).to(tl.int64)
        query = rows(queries + head * query_head, row, query_stride, end, CHANNELS, PADDED, True)
        gradient = rows(gradients + head * gradient_head, row, gradient_stride, end, CHANNELS, PADDED, True)
        result = rows(attended + head * attended_head, row, attended_stride, end, CHANNELS, PADDED, True)
        product = tl.sum(gradient.to(tl.float32) * result.to(tl.float32), axis=1)
        tl.store(products + row * heads + head, product, mask=row < end)
        total = tl.load(sums + row * heads + head, mask=row < end, other=0.0)
        found = tl.full([QUERIES, PADDED], 0.0, tl.float32)
        keys += head * key_head
        values += head * value_head
        for part in tl.static_range(2):
            begin, whole, count = keys_of_tile(span + 2 + 2 * part, start, QUERIES, KEYS, CAUSAL and part == 1)
            of_keys = keys + begin.to(tl.int64) * key_stride
            of_values = values + begin.to(tl.int64) * value_stride
            for first in range(0, whole, KEYS):
                found = _add_query_gradient(
                    found, query, gradient, total, product, row - begin, of_keys, of_values, key_stride, value_stride,
                    first, count, scale, CHANNELS, PADDED, KEYS, False, False,
                )  # fmt: skip
            for first in range(whole, count, KEYS):
                found = _add_query_gradient(
                    found, query, gradient, total, product, row - begin, of_keys, of_values, key_stride, value_stride,
                    first, count, scale, CHANNELS, PADDED, KEYS, True, CAUSAL and part == 1,
                )  # fmt: skip
        store_rows(of_queries + head * result_head, row, result_stride, end, found * scale, CHANNELS, PADDED)


@triton.jit
def _add_query_gradient(
    found,
    query,
    gradient,
    total,
    product,
    place,
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
    """The part of a tile of keys from `first` on, of a span of `count`; if `PARTIAL`, the span may end within it."""
    other = first + tl.arange(0, KEYS)
    key = rows(keys, other, key_stride, count, CHANNELS, PADDED, PARTIAL)
    value = rows(values, other, value_stride, count, CHANNELS, PADDED, PARTIAL)
    share = tl.exp2(tl.dot(query, tl.trans(key)) * (scale * _LOG2_E) - total[:, None])
    if PARTIAL:
        share = tl.where((other < count)[None, :], share, 0.0)
    if CAUSAL:
        share = tl.where(other[None, :] <= place[:, None], share, 0.0)
    of_scores = share * (tl.dot(gradient, tl.trans(value)) - product[:, None])
    return tl.dot(of_scores.to(key.dtype), key, found)


@triton.jit
def _key_gradient_tile(
    queries,
    keys,
    values,
    gradients,
    of_keys,
    of_values,
    sums,
    products,
    readers,
    query_stride,
    query_head,
    key_stride,
    key_head,
    value_stride,
    value_head,
    gradient_stride,
    gradient_head,
    key_result_stride,
    key_result_head,
    value_result_stride,
    value_result_head,
    scale,
    tiles,
    heads,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """The gradients of one head of a tile of keys of one span, and of its values."""
    head, span, start, end = tile_of_span(readers, tiles, heads, KEYS)
    if start < end:
        place = (start + tl.arange(0, KEYS)).to(tl.int64)
        key = rows(keys + head * key_head, place, key_stride, end, CHANNELS, PADDED, True)
        value = rows(values + head * value_head, place, value_stride, end, CHANNELS, PADDED, True)
        of_key = tl.full([KEYS, PADDED], 0.0, tl.float32)
        of_value = tl.full([KEYS, PADDED], 0.0, tl.float32)
        queries += head * query_head
        gradients += head * gradient_head
        for part in tl.static_range(2):
            begin = tl.load(span + 2 + 2 * part)
            count = tl.load(span + 3 + 2 * part) - begin
            of_span = begin.to(tl.int64)
            skipped = 0
            if CAUSAL:
                skipped = tl.maximum(start - begin, 0)
            for first in range(skipped, count, QUERIES):
                row = first + tl.arange(0, QUERIES)
                query = rows(queries + of_span * query_stride, row, query_stride, count, CHANNELS, PADDED, True)
                gradient = rows(
                    gradients + of_span * gradient_stride, row, gradient_stride, count, CHANNELS, PADDED, True
                )
                numbers = (begin + row) * heads + head
                total = tl.load(sums + numbers, mask=row < count, other=0.0)
                product = tl.load(products + numbers, mask=row < count, other=0.0)
                share = tl.exp2(tl.dot(key, tl.trans(query)) * (scale * _LOG2_E) - total[None, :])
                if CAUSAL:
                    share = tl.where((place - begin)[:, None] <= row[None, :], share, 0.0)
                of_value = tl.dot(share.to(gradient.dtype), gradient, of_value)
                of_scores = share * (tl.dot(value, tl.trans(gradient)) - product[None, :])
                of_key = tl.dot(of_scores.to(query.dtype), query, of_key)
        store_rows(of_keys + head * key_result_head, place, key_result_stride, end, of_key * scale, CHANNELS, PADDED)
        store_rows(of_values + head * value_result_head, place, value_result_stride, end, of_value, CHANNELS, PADDED)
