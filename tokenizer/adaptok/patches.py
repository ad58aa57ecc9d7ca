"""Videos as grids of flat patches, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genvid.tokenizer.layers import product
from genvid.tokens.frame_blocks import fill_first

Patch = tuple[int, int, int]
"""Frames, height and width of a patch."""


class PatchEmbedding(nn.Module):
    """(B, 3, T, H, W) -> (B, G, H / h, W / w, width): one vector for each of `patchify`."""

    def __init__(self, patch: Patch, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(channels(patch), width)

    def forward(self, video: Tensor) -> Tensor:
        return product(self.linear, patchify(video, self.patch))


def channels(patch: Patch) -> int:
    """Values in an RGB patch."""
    return 3 * patch[0] * patch[1] * patch[2]


def patchify(video: Tensor, patch: Patch) -> Tensor:
    """(B, 3, T, H, W) -> (B, G, H / h, W / w, t * h * w * 3), G = T / t rounded up: the first patches are filled
    (`fill_first`)."""
    t, h, w = patch
    video = fill_first(video, t)
    batch, colours, frames, height, width = video.shape
    grid = video.reshape(batch, colours, frames // t, t, height // h, h, width // w, w)
    return grid.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)


def unpatchify(patches: Tensor, patch: Patch, lengths: Sequence[int]) -> Tensor:
    """The inverse of `patchify`: of the patches of each block the last `lengths[g]` frames."""
    t, h, w = patch
    batch, blocks, rows, columns, _ = patches.shape
    grid = patches.reshape(batch, blocks, rows, columns, t, h, w, 3).permute(0, 7, 1, 4, 2, 5, 3, 6)
    video = grid.reshape(batch, 3, blocks * t, rows * h, columns * w)
    if sum(lengths) == video.shape[2]:
        return video
    return torch.cat([part[:, :, t - n :] for part, n in zip(torch.split(video, t, 2), lengths, strict=True)], 2)
