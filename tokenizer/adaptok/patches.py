"""Videos as grids of flat patches, and back."""

from __future__ import annotations

from torch import Tensor, nn

Patch = tuple[int, int, int]
"""Frames, height and width of a patch."""


class PatchEmbedding(nn.Module):
    """(B, 3, T, H, W) -> (B, T / t, H / h, W / w, width): one vector per patch."""

    def __init__(self, patch: Patch, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(channels(patch), width)

    def forward(self, video: Tensor) -> Tensor:
        vectors: Tensor = self.linear(patchify(video, self.patch))
        return vectors


def channels(patch: Patch) -> int:
    """Values in an RGB patch."""
    return 3 * patch[0] * patch[1] * patch[2]


def patchify(video: Tensor, patch: Patch) -> Tensor:
    """(B, 3, T, H, W) -> (B, T / t, H / h, W / w, t * h * w * 3)."""
    t, h, w = patch
    batch, colours, frames, height, width = video.shape
    grid = video.reshape(batch, colours, frames // t, t, height // h, h, width // w, w)
    return grid.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)


def unpatchify(patches: Tensor, patch: Patch) -> Tensor:
    """The inverse of `patchify`."""
    t, h, w = patch
    batch, blocks, rows, columns, _ = patches.shape
    grid = patches.reshape(batch, blocks, rows, columns, t, h, w, 3).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return grid.reshape(batch, 3, blocks * t, rows * h, columns * w)
