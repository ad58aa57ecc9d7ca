# mypy: ignore-errors
"""Sampling a single row: five Triton kernels per layer, bound by memory bandwidth.

A matrix-vector product reads every weight once. A program loads all its rows of the matrix before it waits for the
preceding kernel (programmatic dependent launch), so weights arrive while that kernel still runs. Sums are float32, in
another order than in `genvid.generation.engine.network`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from genvid.generation.engine.kernels import attend_chunks, rotated, rotation, store_pair
from genvid.generation.engine.weights import Layer
from genvid.hardware import hardware

OVERLAP = True
"""Start each kernel while the preceding one runs, where `Hardware.overlap`."""
PROGRAM_BYTES = 40 * 1024
"""Most weights that one program holds in registers."""
COLUMNS = 256
"""Least columns of a tile: 32 lanes of 16 bytes each."""
SPLITS = 8
"""Most parts that the attention of a head is split into."""
SMALLEST_CHUNK = 64
POSITIONS = 128
"""Most positions of the attention read at a time."""


class SingleRow:
    """The layers of a `genvid.generation.engine.network.SlotNetwork` of one slot, over one row, and its head."""

    def __init__(
        self,
        layers: Sequence[Layer],
        norm: Tensor,
        head: Tensor,
        cache: Tensor,
        rotary: tuple[Tensor, Tensor],
        eps: float,
    ) -> None:
        self._layers, self._norm, self._head, self._cache = layers, norm, head, cache
        self._rotary, self._eps = rotary, eps
        device = cache.device
        on_gpu = device.type == "cuda"
        self._overlap = OVERLAP and hardware(device).overlap
        self._processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 4

    @staticmethod
    def fits(cache: Tensor) -> bool:
        """Whether the (depth, 2, slots, E, C, D) cache has one slot, and D is a power of 2."""
        return cache.shape[2] == 1 and cache.shape[-1].bit_count() == 1

    def __call__(self, x: Tensor, position: Tensor, length: Tensor, limit: int) -> Tensor:
        """(1, width) at a (1,) position, over (1,) `length` <= `limit` cache positions -> x, overwritten."""
        chunk = max(SMALLEST_CHUNK, triton.next_power_of_2(-(-limit // SPLITS)))
        options = {"chunk": chunk, "tile": min(chunk, POSITIONS), "overlap": self._overlap}
        for number, layer in enumerate(self._layers):
            cache = self._cache[number]
            queries = self._project(x, layer, cache, position, overlap=number > 0)
            parts = attend_chunks(queries, cache, None, length, limit, **options)
            self._add_attended(x, layer, parts, length, chunk)
            self._add_mlp(x, layer)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """(1, width) -> (1, num_outputs) float32."""
        logits = torch.empty(1, len(self._head), dtype=torch.float32, device=x.device)
        grid, options = self._split(self._head)
        _read_out[grid](x, self._norm, self._head, logits, self._eps, *self._head.shape, **options)
        return logits

    def _project(self, x: Tensor, layer: Layer, cache: Tensor, position: Tensor, *, overlap: bool) -> Tensor:
        """Queries (1, H, D), rotated; keys and values go to the (2, 1, E, C, D) cache.

        Not overlapped in the first layer: later kernels may then read earlier results without waiting.
        """
        keys, values = cache[:, 0]
        kv_heads, _, width = keys.shape
        heads = len(layer.qkv) // width - 2 * kv_heads
        queries = torch.empty(1, heads, width, dtype=x.dtype, device=x.device)
        grid, options = self._split(layer.qkv, even=True, overlap=overlap)
        _project[grid](
            x,
            layer.norm,
            layer.qkv,
            queries,
            keys,
            values,
            position,
            *self._rotary,
            keys.stride(0),
            self._eps,
            *layer.qkv.shape,
            HEADS=heads,
            KV_HEADS=kv_heads,
            WIDTH=width,
            **options,
        )
        return queries

    def _add_attended(
        self, x: Tensor, layer: Layer, parts: tuple[Tensor, Tensor, Tensor], length: Tensor, chunk: int
    ) -> None:
        _, heads, splits, width = parts[0].shape
        grid, options = self._split(layer.out)
        options["TILE"] = max(options["TILE"], width)
        _add_attended[grid](
            x,
            *parts,
            length,
            layer.out,
            splits,
            *layer.out.shape,
            HEADS=heads,
            WIDTH=width,
            CHUNK=chunk,
            SPLITS=triton.next_power_of_2(splits),
            **options,
        )

    def _add_mlp(self, x: Tensor, layer: Layer) -> None:
        hidden = torch.empty(layer.down.shape[1], dtype=x.dtype, device=x.device)
        grid, options = self._split(layer.gate_up, even=True)
        _open[grid](x, layer.mlp_norm, layer.gate_up, hidden, self._eps, *layer.gate_up.shape, **options)
        grid, options = self._split(layer.down)
        _close[grid](x, hidden, layer.down, *layer.down.shape, **options)

    def _split(self, matrix: Tensor, *, even: bool = False, overlap: bool = True) -> tuple[tuple[int], dict[str, Any]]:
        """(grid, kernel options) of a product: rows of the matrix for each program."""
        count, columns = matrix.shape
        rows = 2 if even else 1
        while 2 * rows * columns * matrix.element_size() <= PROGRAM_BYTES and count >= 2 * rows * self._processors:
            rows *= 2
        tile = max(min(COLUMNS, triton.next_power_of_2(columns)), triton.next_power_of_2(-(-columns // 16)))
        warps = min(4, max(rows, tile // COLUMNS))
        options = {
            "ROWS": rows,
            "WARPS": min(rows, warps),
            "TILE": tile,
            "OVERLAP": self._overlap,
            "num_warps": warps,
        }
        if self._overlap and overlap:
            options["launch_pdl"] = True
        return (-(-count // rows),), options


@triton.jit
def _numbers(ROWS: tl.constexpr, WARPS: tl.constexpr):
    """Rows of a program, (ROWS / WARPS, WARPS): each warp has complete rows and its own copy of the vector."""
    first = tl.program_id(0) * ROWS + tl.arange(0, ROWS // WARPS) * WARPS
    return first[:, None] + tl.arange(0, WARPS)[None, :]


@triton.jit
def _tiles(matrix, rows, COUNT: tl.constexpr, TILE: tl.constexpr):
    """Rows of a matrix of COUNT columns, as tiles (..., TILE)."""
    tiles = ()
    for start in tl.static_range(0, COUNT, TILE):
        column = start + tl.arange(0, TILE)[None, None, :]
        at = matrix + rows[:, :, None] * COUNT + column
        if start + TILE <= COUNT:
            tile = tl.load(at)
        else:
            tile = tl.load(at, mask=column < COUNT, other=0.0)
        tiles += (tile,)
    return tiles


@triton.jit
def _vector(source, COUNT: tl.constexpr, TILE: tl.constexpr, WARPS: tl.constexpr):
    """A vector as tiles (1, WARPS, TILE)."""
    return _tiles(source, tl.arange(0, WARPS)[None, :] * 0, COUNT, TILE)


@triton.jit
def _products(weights, vector):
    """Tiles (R, WARPS, TILE) times tiles (1, ..., TILE) -> (R, WARPS) float32."""
    total = weights[0].to(tl.float32) * vector[0].to(tl.float32)
    for number in tl.static_range(1, len(weights)):
        total += weights[number].to(tl.float32) * vector[number].to(tl.float32)
    return tl.sum(total, axis=2)


@triton.jit
def _normed_products(weights, x, gains, eps, COUNT: tl.constexpr):
    """Tiles (R, WARPS, TILE) times the RMSNorm of x -> (R, WARPS) float32."""
    value = x[0].to(tl.float32)
    squares = value * value
    total = weights[0].to(tl.float32) * (value * gains[0].to(tl.float32))
    for number in tl.static_range(1, len(weights)):
        value = x[number].to(tl.float32)
        squares += value * value
        total += weights[number].to(tl.float32) * (value * gains[number].to(tl.float32))
    return tl.sum(total, axis=2) * tl.rsqrt(tl.sum(squares, axis=2) / COUNT + eps)


@triton.jit
def _joined(summed, greatest, total, splits, length, first, HEADS, WIDTH, CHUNK, SPLITS, TILE):
    """TILE channels of the attention, starting at head `first` -> (1, 1, TILE)."""
    heads = first + tl.arange(0, TILE // WIDTH)
    split = tl.arange(0, SPLITS)
    there = (heads < HEADS)[:, None] & (split * CHUNK < length)[None, :]
    cell = heads[:, None] * splits + split[None, :]
    score = tl.load(greatest + cell, mask=there, other=-1e30)
    share = tl.where(there, tl.exp(score - tl.max(score, axis=1)[:, None]), 0.0)
    weight = tl.sum(share * tl.load(total + cell, mask=there, other=0.0), axis=1)
    share = share / tl.maximum(weight, 1e-30)[:, None]
    at = cell[:, :, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]
    part = tl.load(summed + at, mask=there[:, :, None], other=0.0)
    return tl.sum(part * share[:, :, None], axis=1).reshape(1, 1, TILE)


@triton.jit
def _project(
    x,
    norm,
    weight,
    queries,
    keys,
    values,
    position,
    cos,
    sin,
    head_stride,
    eps,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """RMSNorm, product, rotation of pairs of channels of a head."""
    if OVERLAP:
        gdc_launch_dependents()
    HALF: tl.constexpr = WIDTH // 2
    # Rows come as low, high, low, high ... of pairs.
    number = _numbers(ROWS, WARPS)
    pair = tl.minimum(number // 2, OUTPUTS // 2 - 1)
    weights = _tiles(weight, pair // HALF * WIDTH + pair % HALF + number % 2 * HALF, INPUTS, TILE)
    gains = _vector(norm, INPUTS, TILE, WARPS)
    at = tl.load(position)
    pair = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    head = pair // HALF
    channel = pair % HALF
    turned = head < HEADS + KV_HEADS
    line = at * WIDTH + channel
    angles = rotation(cos, sin, line, HALF, turned)
    if OVERLAP:
        gdc_wait()
    found = _normed_products(weights, _vector(x, INPUTS, TILE, WARPS), gains, eps, INPUTS)
    low, high = tl.split(found.reshape(ROWS // 2, 2))
    low, high = rotated(low, high, angles)
    query = head < HEADS
    key = (head >= HEADS) & turned
    value = (head >= HEADS + KV_HEADS) & (pair < OUTPUTS // 2)
    store_pair(queries + head * WIDTH + channel, low, high, HALF, query)
    store_pair(keys + (head - HEADS) * head_stride + line, low, high, HALF, key)
    store_pair(values + (head - HEADS - KV_HEADS) * head_stride + line, low, high, HALF, value)


@triton.jit
def _add_attended(
    x,
    summed,
    greatest,
    total,
    length,
    weight,
    splits,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Join the parts of the attention, multiply, add to x."""
    if OVERLAP:
        gdc_launch_dependents()
    row = _numbers(ROWS, WARPS)
    weights = _tiles(weight, tl.minimum(row, OUTPUTS - 1), INPUTS, TILE)
    seen = tl.load(length)
    if OVERLAP:
        gdc_wait()
    attended = ()
    for start in tl.static_range(0, INPUTS, TILE):
        tile = _joined(summed, greatest, total, splits, seen, start // WIDTH, HEADS, WIDTH, CHUNK, SPLITS, TILE)
        attended += (tile,)
    _add(x, row, _products(weights, attended), OUTPUTS)


@triton.jit
def _open(
    x,
    norm,
    weight,
    hidden,
    eps,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """RMSNorm, product, SiLU of the gate times the other half."""
    if OVERLAP:
        gdc_launch_dependents()
    HIDDEN: tl.constexpr = OUTPUTS // 2
    # Rows come as gate, up, gate, up ...
    number = _numbers(ROWS, WARPS)
    weights = _tiles(weight, tl.minimum(number // 2, HIDDEN - 1) + number % 2 * HIDDEN, INPUTS, TILE)
    gains = _vector(norm, INPUTS, TILE, WARPS)
    if OVERLAP:
        gdc_wait()
    found = _normed_products(weights, _vector(x, INPUTS, TILE, WARPS), gains, eps, INPUTS)
    gate, up = tl.split(found.reshape(ROWS // 2, 2))
    at = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    tl.store(hidden + at, (gate / (1 + tl.exp(-gate)) * up).to(hidden.dtype.element_ty), mask=at < HIDDEN)


@triton.jit
def _close(
    x,
    hidden,
    weight,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Product, add to x."""
    if OVERLAP:
        gdc_launch_dependents()
    row = _numbers(ROWS, WARPS)
    weights = _tiles(weight, tl.minimum(row, OUTPUTS - 1), INPUTS, TILE)
    if OVERLAP:
        gdc_wait()
    _add(x, row, _products(weights, _vector(hidden, INPUTS, TILE, WARPS)), OUTPUTS)


@triton.jit
def _add(x, row, found, OUTPUTS: tl.constexpr):
    there = row < OUTPUTS
    before = tl.load(x + row, mask=there, other=0.0).to(tl.float32)
    tl.store(x + row, (before + found).to(x.dtype.element_ty), mask=there)


@triton.jit
def _read_out(
    x,
    norm,
    weight,
    logits,
    eps,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Last RMSNorm and product."""
    row = _numbers(ROWS, WARPS)
    weights = _tiles(weight, tl.minimum(row, OUTPUTS - 1), INPUTS, TILE)
    gains = _vector(norm, INPUTS, TILE, WARPS)
    if OVERLAP:
        gdc_wait()
    found = _normed_products(weights, _vector(x, INPUTS, TILE, WARPS), gains, eps, INPUTS)
    tl.store(logits + row, found, mask=row < OUTPUTS)
