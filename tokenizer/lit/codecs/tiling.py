"""Large frames in overlapping tiles, blended linearly: activations are those of one tile of one clip.

diffusers' own `enable_tiling` has no effect on AutoencoderKLCosmos (0.42), and its tiles differ from class to class.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor


def in_tiles(apply: Callable[[Tensor], Tensor], x: Tensor, tile: int, scale: Fraction) -> Tensor:
    """`apply` to the tiles of (B, C, T, H, W), clip by clip, joined to its result on the complete frames.

    `tile` is a side in positions of `x`, a multiple of 4; neighbours share a quarter of it. `scale`: sides of the
    result per side of `x`. Outside of the shared strips a tile's result is left as it is.
    """
    return torch.cat([_clip(apply, clip, tile, scale) for clip in torch.split(x, 1)])


def _clip(apply: Callable[[Tensor], Tensor], clip: Tensor, tile: int, scale: Fraction) -> Tensor:
    rows, columns = (_spans(size, tile) for size in clip.shape[3:])
    height, width = (int(size * scale) for size in clip.shape[3:])
    joined: Tensor | None = None
    total = clip.new_zeros(height, width)
    for top, bottom in rows:
        for left, right in columns:
            part = apply(clip[..., top:bottom, left:right])
            down, across = (
                _ramp(span, size, int(tile // 4 * scale), scale, part)
                for span, size in (((top, bottom), clip.shape[3]), ((left, right), clip.shape[4]))
            )
            weight = down[:, None] * across
            place = (..., slice(int(top * scale), int(bottom * scale)), slice(int(left * scale), int(right * scale)))
            if joined is None:
                joined = part.new_zeros(*part.shape[:3], height, width)
            joined[place] += part * weight
            total[place] += weight
    assert joined is not None
    return joined / total


def _spans(size: int, tile: int) -> list[tuple[int, int]]:
    """Starts and ends of the tiles along a side; the last one ends with it."""
    if size <= tile:
        return [(0, size)]
    step = tile - tile // 4
    starts = [*range(0, size - tile, step), size - tile]
    return [(start, start + tile) for start in starts]


def _ramp(span: tuple[int, int], size: int, overlap: int, scale: Fraction, like: Tensor) -> Tensor:
    """Weights of a tile along a side: 1, falling over `overlap` positions towards ends that have a neighbour."""
    index = torch.arange(int((span[1] - span[0]) * scale), device=like.device, dtype=like.dtype)
    rise = (index + 0.5) / overlap
    weights = torch.ones_like(index)
    if span[0] > 0:
        weights = torch.minimum(weights, rise)
    if span[1] < size:
        weights = torch.minimum(weights, rise.flip(0))
    return weights
