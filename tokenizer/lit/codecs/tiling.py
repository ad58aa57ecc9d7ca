"""Large frames in overlapping tiles, blended linearly: activations are those of one tile of one clip.

diffusers' own `enable_tiling` has no effect on AutoencoderKLCosmos (0.42), and its tiles differ from class to class.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

Span = tuple[slice, slice, Tensor]
"""A tile along one side: its positions in the input and in the result, and the weight of each of the latter."""


def in_tiles(apply: Callable[[Tensor], Tensor], x: Tensor, tile: int, scale: Fraction) -> Tensor:
    """`apply` to the tiles of (B, C, T, H, W), clip by clip, joined to its result on the complete frames.

    `tile` is a side in positions of `x`, a multiple of 4; neighbours share a quarter of it. `scale`: sides of the
    result per side of `x`. Outside of the shared strips a tile's result is left as it is. Memory beside the result:
    that of one tile.
    """
    rows, columns = (_spans(size, tile, scale, x) for size in x.shape[3:])
    joined: Tensor | None = None
    for clip in range(len(x)):
        for row, made_row, down in rows:
            for column, made_column, across in columns:
                part = apply(x[clip : clip + 1, :, :, row, column])
                if joined is None:
                    height, width = (int(size * scale) for size in x.shape[3:])
                    joined = part.new_zeros(len(x), *part.shape[1:3], height, width)
                joined[clip, :, :, made_row, made_column] += part[0] * (down[:, None] * across).to(part.dtype)
    assert joined is not None
    return joined


def tile_spans(size: int, tile: int) -> list[slice]:
    """The positions of each tile along a side of `size`: neighbours share at least a quarter, the last ends with it."""
    starts = [*range(0, size - tile, tile - tile // 4), size - tile] if size > tile else [0]
    return [slice(start, min(start + tile, size)) for start in starts]


def _spans(size: int, tile: int, scale: Fraction, like: Tensor) -> list[Span]:
    """The tiles along a side of `size` positions. Weights fall linearly over a quarter of a tile towards each
    neighbour, and sum to 1 at every position of the result."""
    spans = tile_spans(size, tile)
    made = [slice(int(span.start * scale), int(span.stop * scale)) for span in spans]
    total = torch.zeros(int(size * scale), device=like.device)
    ramps = []
    for span, its in zip(spans, made, strict=True):
        index = torch.arange(its.stop - its.start, device=like.device)
        rise = (index + 0.5) / int(tile // 4 * scale)
        before = rise if span.start > 0 else torch.ones_like(rise)
        after = rise.flip(0) if span.stop < size else torch.ones_like(rise)
        ramps.append(torch.minimum(before, after).clamp(max=1))
        total[its] += ramps[-1]
    return [(span, its, ramp / total[its]) for span, its, ramp in zip(spans, made, ramps, strict=True)]
