"""Videos as rows of flat patches, block by block, and back."""

from __future__ import annotations

from torch import Tensor

Patch = tuple[int, int, int]
"""Frames, height and width of a patch."""


def patchify(video: Tensor, patch: Patch) -> Tensor:
    """(B, 3, T, H, W) -> (B, G, P, patch volume * 3): one block per patch depth in time, patches row by row."""
    t, h, w = patch
    grid = video.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t))  # B C G t y h x w
    return grid.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(2, 3)


def unpatchify(patches: Tensor, patch: Patch, resolution: tuple[int, int]) -> Tensor:
    """The inverse of `patchify` for frames of `resolution` (height, width)."""
    t, h, w = patch
    grid = patches.unflatten(3, (t, h, w, 3)).unflatten(2, (resolution[0] // h, resolution[1] // w))
    return grid.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
