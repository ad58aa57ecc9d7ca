"""Rotary positions over block, row and column (RoPE, arXiv 2104.09864, over three axes).

Queries and keys are rotated by angles proportional to their places, so attention depends on differences of places
alone: one set of weights serves videos of any length and size. A patch or pixel query lies at its block, row and
column, a latent at its block and the centre of its cell: so latents and the patches that they describe share one
space, which the index of a latent in its block would not give.

Symbols: B videos, G blocks, L latents and P patches of a block, W channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.pooled_queries import pool_patches
from genvid.tokenizer.adaptok.positions import Placement, Runs
from genvid.tokenizer.adaptok.pyramid import Pyramid, num_levels
from genvid.tokenizer.layers import Attend, StackConfig, learned_table

_BASE = 100.0
"""Frequencies fall from 1 radian a block or patch to nearly 1 / _BASE."""


class LevelVectors(nn.Module):
    """A learned vector for the latents of each level of the pyramid, the same in every block and for every size."""

    def __init__(self, capacity: int, width: int) -> None:
        """`capacity`: latents of a block at the trained size."""
        super().__init__()
        self.levels = learned_table(num_levels(capacity), width)

    def forward(self, pyramid: Pyramid) -> Tensor:
        """(L, width). Levels that only larger pictures have share the vector of the last one."""
        vectors: Tensor = self.levels[pyramid.levels.clamp(max=len(self.levels) - 1)]
        return vectors


class RotaryEncoderPositions(nn.Module):
    """A learned query for the latents of each level."""

    def __init__(self, config: AdapTokConfig) -> None:
        super().__init__()
        self.network = config.encoder
        self.queries = LevelVectors(config.block_capacity, config.encoder.width)

    def forward(self, patches: Tensor, pyramid: Pyramid) -> Tensor:
        """(B, G, P, W) -> (B, G, P + L, W): patches and latent queries, pooled over the cells of `pyramid`."""
        queries = self.queries(pyramid).to(patches.dtype) + pool_patches(patches, pyramid.cells)
        return torch.cat([patches, queries], 2)

    def placement(self, blocks: Sequence[int], pyramid: Pyramid, first: int | Tensor = 0) -> Placement:
        """Of the patches and latents of each of `blocks`, counted from `first`."""
        places = torch.cat([pyramid.patch_places, pyramid.latent_places])
        return rotated([(block, places) for block in blocks], self.network, first)


class PastTokens(nn.Module):
    """Tokens of earlier blocks as the encoder of a closed loop reads them: in the places of their latents."""

    def __init__(self, config: AdapTokConfig, code_dim: int) -> None:
        super().__init__()
        self.network = config.encoder
        self.input = nn.Linear(code_dim, config.encoder.width)
        self.levels = LevelVectors(config.block_capacity, config.encoder.width)

    def forward(self, vectors: Tensor, pyramid: Pyramid) -> Tensor:
        """Vectors of codes (B, L, code_dim) -> (B, L, W)."""
        tokens: Tensor = self.input(vectors) + self.levels(pyramid)
        return tokens

    def placement(self, block: int | Tensor, pyramid: Pyramid) -> Placement:
        """Of the tokens of a block."""
        return rotated([(0, pyramid.latent_places)], self.network, block)


class RotaryDecoderPositions(nn.Module):
    """A learned vector for the latents of each level, and one for all pixel queries."""

    def __init__(self, config: AdapTokConfig) -> None:
        super().__init__()
        self.network = config.decoder
        self.latents = LevelVectors(config.block_capacity, config.decoder.width)
        self.pixel_type = learned_table(config.decoder.width)

    def forward(self, runs: Runs, blocks: Sequence[int], pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """Vectors of the latents of `runs` (N, W), and of the pixel queries of each of `blocks`."""
        vectors = self.latents(pyramid)
        latents = torch.cat([vectors[:length] for _, length in runs])
        return latents, self.pixel_type.expand(len(blocks) * len(pyramid.patch_places), -1)

    def placement(
        self,
        runs: Runs,
        blocks: Sequence[int],
        pyramid: Pyramid,
        first: int | Tensor = 0,
        chosen: Tensor | None = None,
    ) -> Placement:
        """Of the latents of `runs`, and of the pixel queries of each of `blocks`, counted from `first`; or of the ones
        `chosen` (N,) among these, in their order."""
        latents = [(block, pyramid.latent_places[:length]) for block, length in runs]
        return rotated([*latents, *((block, pyramid.patch_places) for block in blocks)], self.network, first, chosen)


def rotated(
    parts: Sequence[tuple[int, Tensor]],
    network: StackConfig,
    first: int | Tensor = 0,
    chosen: Tensor | None = None,
) -> Placement:
    """Attention in `network` between tokens of blocks, counted from `first`, at (N, 2) float64 rows and columns, in
    their order; or between the ones `chosen` (N,) among these."""
    blocks = torch.cat([part.new_full((len(part), 1), block) for block, part in parts]) + first
    places = torch.cat([blocks, torch.cat([part for _, part in parts])], 1)
    # In float64: after an hour of video the angles have lost no digit that float32 has.
    angles = _angles(places, network.width // network.heads)
    cosine, sine = angles.cos().float().repeat(1, 2), angles.sin().float()
    sine = torch.cat([-sine, sine], 1)
    if chosen is not None:
        cosine, sine = cosine[chosen], sine[chosen]

    def place(attend: Attend) -> Attend:
        def attend_rotated(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            queries, keys = _rotate(torch.stack([queries, keys]), cosine, sine).unbind()
            return attend(queries, keys, values)

        return attend_rotated

    return place


def _angles(places: Tensor, channels: int) -> Tensor:
    """(S, 3) blocks, rows and columns -> (S, channels / 2): a quarter of the angles for blocks, the others for rows and
    columns."""
    pairs = channels // 2
    blocks = max(1, pairs // 4)
    rows = (pairs - blocks) // 2
    angles = []
    for place, count in zip(places.unbind(1), (blocks, rows, pairs - blocks - rows), strict=True):
        frequencies = _BASE ** -(torch.arange(count, dtype=torch.double, device=places.device) / count)
        angles.append(place[:, None] * frequencies)
    return torch.cat(angles, 1)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """(..., S, C) -> the same; channels c and c + C / 2 are turned by angle c.

    `cosine` (S, C) of the angles twice, `sine` (S, C) of the negative angles and the angles: few and large kernels.
    """
    return (x * cosine + x.roll(x.shape[-1] // 2, -1) * sine).to(x.dtype)
