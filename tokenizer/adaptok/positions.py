"""Position vectors of patches, latents and pixel queries: the published absolute geometry, in this module alone."""

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
        self.register_buffer("patches", patch_positions(grid, width).flatten(1, 2), persistent=False)
        self.queries = learned_table(grid[0], block_capacity, width)

    def forward(self, blocks: int) -> tuple[Tensor, Tensor]:
        """Patch positions (G, P, width) and latent queries (G, L, width) of the first `blocks` blocks."""
        return self.patches[:blocks], self.queries[:blocks]


class DecoderPositions(nn.Module):
    """Fixed sin-cos vectors for latents (by index in the clip) and pixel queries, and a learned one for all queries."""

    latents: Tensor
    pixels: Tensor

    def __init__(self, grid: Grid, block_capacity: int, width: int) -> None:
        super().__init__()
        latents = sincos(torch.arange(grid[0] * block_capacity), width).float()
        self.register_buffer("latents", latents.view(grid[0], block_capacity, width), persistent=False)
        self.register_buffer("pixels", patch_positions(grid, width).flatten(1, 2), persistent=False)
        self.pixel_type = learned_table(width)

    def forward(self, blocks: int) -> tuple[Tensor, Tensor]:
        """Latent positions (G, L, width) and pixel queries (G, P, width) of the first `blocks` blocks."""
        return self.latents[:blocks], self.pixels[:blocks] + self.pixel_type


def sincos(positions: Tensor, width: int) -> Tensor:
    """(N,) positions -> (N, width) float64: sines, then cosines, of wavelengths from 2 pi to 2 pi * 10000."""
    frequencies = 10000.0 ** -(torch.arange(width // 2, device=positions.device).double() / (width // 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def patch_positions(grid: Grid, width: int, device: torch.device | None = None) -> Tensor:
    """(blocks, rows, columns, width) float32: half the channels for columns, half for rows; time is added to all."""
    time, row, column = (torch.arange(size, device=device) for size in grid)
    across = sincos(column, width // 2).expand(grid[1], -1, -1)
    down = sincos(row, width // 2)[:, None].expand(-1, grid[2], -1)
    return (torch.cat([across, down], -1) + sincos(time, width)[:, None, None]).float()
