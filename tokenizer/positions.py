"""Where patches, latents and pixel queries stand: the published absolute geometry.

The only place that knows it. Models ask for the vectors of the first `blocks` blocks and add them to their tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genvid.tokenizer.layers import learned_table

Grid = tuple[int, int, int]
"""Blocks, patch rows and patch columns of the longest clip."""


class EncoderPositions(nn.Module):
    """Fixed sin-cos vectors for patches, and a learned query for every latent of every block."""

    patches: Tensor

    def __init__(self, grid: Grid, block_capacity: int, width: int) -> None:
        super().__init__()
        self.register_buffer("patches", patch_sincos(grid, width), persistent=False)
        self.queries = learned_table(grid[0], block_capacity, width)

    def forward(self, blocks: int) -> tuple[Tensor, Tensor]:
        """Patch positions (G, P, width) and latent queries (G, L, width) of the first `blocks` blocks."""
        return self.patches[:blocks], self.queries[:blocks]


class DecoderPositions(nn.Module):
    """Fixed sin-cos vectors for latents (by their index in the clip) and pixel queries; the latter share a learned one."""

    latents: Tensor
    pixels: Tensor

    def __init__(self, grid: Grid, block_capacity: int, width: int) -> None:
        super().__init__()
        latents = sincos(torch.arange(grid[0] * block_capacity), width).unflatten(0, (grid[0], block_capacity))
        self.register_buffer("latents", latents.float(), persistent=False)
        self.register_buffer("pixels", patch_sincos(grid, width), persistent=False)
        self.pixel_type = learned_table(width)

    def forward(self, blocks: int) -> tuple[Tensor, Tensor]:
        """Latent positions (G, L, width) and pixel queries (G, P, width) of the first `blocks` blocks."""
        return self.latents[:blocks], self.pixels[:blocks] + self.pixel_type


def sincos(positions: Tensor, width: int) -> Tensor:
    """(N,) positions -> (N, width) float64: sines, then cosines, of wavelengths from 2 pi to 2 pi * 10000."""
    frequencies = 10000.0 ** -(torch.arange(width // 2, device=positions.device).double() / (width // 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def patch_sincos(grid: Grid, width: int) -> Tensor:
    """(blocks, rows * columns, width) float32: half the channels tell the column, half the row; time is added."""
    blocks, rows, columns = grid
    column = sincos(torch.arange(columns), width // 2).expand(rows, -1, -1)
    row = sincos(torch.arange(rows), width // 2)[:, None].expand(-1, columns, -1)
    place = torch.cat([column, row], -1).flatten(0, 1)
    return (place + sincos(torch.arange(blocks), width)[:, None]).float()
