"""Pictures for Markdown pages: tokens of every block of a video over time, and videos side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

WIDTH = 64
"""Pixels of a block."""
HEIGHT = 48
"""Pixels of the bar of a block that keeps every token."""
_GAP, _MARGIN = 8, 2
_PAPER, _BAR, _LINE = (255, 255, 255), (38, 84, 124), (200, 200, 200)


def timeline(video: Tensor, lengths: Sequence[int], capacity: int, mean: float) -> Tensor:
    """(3, T, H, W) uint8 and the kept tokens of each of its blocks -> (3, h, w) uint8.

    Above, the first frame of each block; below, a bar of its tokens, as a part of `capacity`. The line is at `mean`
    tokens.
    """
    starts = torch.arange(len(lengths)) * (video.shape[1] // len(lengths))
    frames = video[:, starts].transpose(0, 1).float()
    size = (round(WIDTH * video.shape[2] / video.shape[3]), WIDTH)
    frames = interpolate(frames, size, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)
    bars = torch.stack([_bar(round(HEIGHT * length / capacity)) for length in lengths])
    bars[:, :, HEIGHT - max(1, round(HEIGHT * mean / capacity))] = _colour(_LINE)[:, :, 0]
    return torch.cat([torch.cat([frames, bars], 2)[block] for block in range(len(lengths))], 2)


def stacked(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures (3, h, w) uint8 below each other, with a gap."""
    width = max(picture.shape[2] for picture in pictures)
    rows = []
    for picture in pictures:
        row = _colour(_PAPER).repeat(1, picture.shape[1] + _GAP, width)
        row[:, : picture.shape[1], : picture.shape[2]] = picture
        rows.append(row)
    return torch.cat(rows, 1)[:, :-_GAP]


def side_by_side(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Rows of videos (3, T, H, W) uint8 -> one video."""
    return torch.cat([torch.cat(list(row), 3) for row in rows], 2)


def _bar(height: int) -> Tensor:
    """(3, HEIGHT, WIDTH)"""
    bar = _colour(_PAPER).repeat(1, HEIGHT, WIDTH)
    bar[:, HEIGHT - height :, _MARGIN:-_MARGIN] = _colour(_BAR)
    return bar


def _colour(rgb: tuple[int, int, int]) -> Tensor:
    return torch.tensor(rgb, dtype=torch.uint8)[:, None, None]
