"""Position vectors of patches, latents and pixel queries: the published absolute geometry.

Symbols: B videos, G blocks, L latents and P patches of a block, W channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.pooled_queries import pool_patches
from genvid.tokenizer.adaptok.pyramid import Pyramid
from genvid.tokenizer.layers import Attend, learned_table

Grid = tuple[int, int, int]
"""Blocks, patch rows and patch columns of the longest clip."""

Runs = Sequence[tuple[int, int]]
"""Latents in a sequence: the first n of block g for each (g, n)."""

Placement = Callable[[Attend], Attend]
"""Attention -> the same between tokens at certain places."""


class EncoderPositions(nn.Module):
    """Fixed sin-cos vectors for patches, and a learned query for every latent of every block."""

    patches: Tensor

    def __init__(self, config: AdapTokConfig) -> None:
        super().__init__()
        grid, width = config.grid, config.encoder.width
        self.register_buffer("patches", patch_positions(grid, width).flatten(1, 2), persistent=False)
        self.queries = learned_table(grid[0], config.block_capacity, width)
        self.pooled = config.pooled_queries

    def forward(self, patches: Tensor, pyramid: Pyramid) -> Tensor:
        """(B, G, P, W) -> (B, G, P + L, W): patches and latent queries.

        With pooled queries these start from the mean patches of the cells of `pyramid`.
        """
        blocks = patches.shape[1]
        queries = self.queries[:blocks].expand(len(patches), -1, -1, -1).to(patches.dtype)
        if self.pooled:
            queries = queries + pool_patches(patches, pyramid.cells)
        return torch.cat([patches + self.patches[:blocks], queries], 2)

    def placement(self, blocks: Sequence[int], pyramid: Pyramid, first: int | Tensor = 0) -> Placement:
        """Attention as it is: places are in the vectors."""
        return unchanged


class DecoderPositions(nn.Module):
    """Fixed sin-cos vectors for latents (by index in the clip) and pixel queries, and a learned one for all queries."""

    latents: Tensor
    pixels: Tensor

    def __init__(self, config: AdapTokConfig) -> None:
        super().__init__()
        grid, width = config.grid, config.decoder.width
        latents = sincos(torch.arange(grid[0] * config.block_capacity), width).float()
        self.register_buffer("latents", latents.view(grid[0], -1, width), persistent=False)
        self.register_buffer("pixels", patch_positions(grid, width).flatten(1, 2), persistent=False)
        self.pixel_type = learned_table(width)

    def forward(self, runs: Runs, blocks: Sequence[int], pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """Vectors of the latents of `runs` (N, W), and of the pixel queries of each of `blocks`."""
        latents = torch.cat([self.latents[block, :length] for block, length in runs])
        queries = self.pixels + self.pixel_type
        return latents, torch.cat([queries[block] for block in blocks])

    def placement(
        self,
        runs: Runs,
        blocks: Sequence[int],
        pyramid: Pyramid,
        first: int | Tensor = 0,
        chosen: Tensor | None = None,
    ) -> Placement:
        """Attention as it is: places are in the vectors."""
        return unchanged


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


def unchanged(attend: Attend) -> Attend:
    """The placement of absolute geometry."""
    return attend
