"""The inpainter: a transformer that predicts a correction of copy-forward where latents are dropped or means.

Attention is factorised: over the positions of a frame, then over the last `context` frames at a position. The last
layer starts at zero, so an untrained inpainter is copy-forward.

From the paper (arXiv 2606.06158): a lightweight, factorised transformer. Depth, positions, convolutions, inputs and
the residual are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genvid.tokenizer.layers import Attend, StackConfig, initialise, learned_table
from genvid.tokenizer.lit.reference import Reference, last_kept, next_kept

FrameGrid = tuple[int, int]
"""Rows and columns of latents in a frame."""
KeysValues = tuple[Tensor, Tensor]
"""Of a temporal block: (B * positions of all tiles, heads, frames, head_dim) each."""

_ROW = 64
"""Queries in a tile of the attention kernels."""


@dataclass(frozen=True)
class InpainterConfig:
    """Size and reach. Each of `depth` layers is a spatial and a temporal block of 12 width^2 parameters each."""

    RENAMED: ClassVar[Mapping[str, str]] = {"window": "tile"}

    transformer: StackConfig = field(default_factory=lambda: StackConfig(256, 4, 4))
    context: int = 8
    """Latent frames of temporal attention, the present one included; a stream holds `context` - 1."""
    tile: int = 16
    """Rows and columns of a tile, within which spatial attention is computed: cost is linear in the frame's size, and
    larger frames than in training are attended to in tiles of the same size. Convolutions cross the tiles' borders."""
    causal: bool = True
    """False: temporal attention and inputs also look ahead; better reconstruction, no streaming."""

    def __post_init__(self) -> None:
        if self.context < 1 or self.tile < 1:
            raise ValueError(f"context and tile are at least 1, got {self.context} and {self.tile}")
        if (self.transformer.width // self.transformer.heads) % 4:
            raise ValueError(
                f"width / heads must be a multiple of 4, got {self.transformer.width} / {self.transformer.heads}"
            )


@dataclass(frozen=True)
class Memory:
    """The cache C_fill of a stream: keys and values of the last `context` - 1 filled frames.

    Where the paper caches filled latents, keys and values make a stream equal to one call without computing those
    frames again.
    """

    layers: list[KeysValues]
    """Of each temporal block."""
    least: Tensor
    """(B,) least change of a kept latent so far; infinite before any."""


class Inpainter(nn.Module):
    """Normalised latents (B, G, L, C), some dropped -> all latents.

    At high keep rates dropped latents have hardly changed. The least change of a kept latent so far bounds theirs: it
    is the scale of all residuals, each multiplied by a predicted exponential.
    """

    SCALES = (1e-3, 10.0)
    """Bounds of the scale of residuals. Without any change so far it is the lower one."""
    SIZES = 4.0
    """Bound of the logarithm of the exponential factor, so that gradients never vanish."""

    def __init__(self, channels: int, config: InpainterConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.transformer.width, config.transformer.heads
        # Reference, its change, age, scale, whether means are sent; without `causal` also the change to the next kept
        # latent and the blocks until then.
        inputs = 2 * channels + 3 + (0 if config.causal else channels + 1)
        self.embed = nn.Conv2d(inputs, width, 3, padding=1)
        self.mask_embedding = learned_table(width)
        # Conditional positions (arXiv 2102.10882), zero at first.
        self.around = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False) for _ in range(config.transformer.depth)
        )
        self.spatial = config.transformer.build()
        self.temporal = config.transformer.build()
        lags = config.context if config.causal else 2 * config.context - 1
        self.lag_bias = nn.Parameter(torch.zeros(config.transformer.depth, heads, lags))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, channels + 1)
        initialise(self)
        nn.init.zeros_(self.output.weight)
        for parameter in self.around.parameters():
            nn.init.zeros_(parameter)

    def use_compiler(self) -> None:
        """torch.compile in one piece. With layout optimisation for convolutions, attention masks would not be
        contiguous in their last dimension, as the kernels need them."""
        self.compile(options={"layout_optimization": False})

    def forward(
        self,
        latents: Tensor,
        keep: Tensor,
        means: Tensor,
        grid: FrameGrid,
        start: Reference | None = None,
        memory: Memory | None = None,
    ) -> tuple[Tensor, Reference, Memory]:
        """(B, G, L, C) and (B, G, L) -> the filled latents, and the two caches for the blocks that follow.

        Dropped latents are never read. Kept latents are unchanged, except in clips whose kept latents are `means` (B,):
        there all are corrected.
        """
        copied, age = last_kept(latents, keep, start)
        change = copied - torch.cat([copied[:, :1] if start is None else start.latents[:, None], copied[:, :-1]], 1)
        least = self._least(change, memory)
        scale = torch.where(least.isinf(), 0, least).clamp(*self.SCALES)[..., None, None]
        clips, tiles = len(keep), Tiles(grid, self.config.tile)
        x = tiles.cut(self._embed(keep, means, copied, change, age, scale, grid))
        over_space = _over_space(tiles, len(x), x.device)
        x = x.flatten(0, 1)
        layers: list[KeysValues] = []
        blocks = zip(self.around, self.spatial, self.temporal, strict=True)
        for index, (around, spatial, temporal) in enumerate(blocks):
            past = None if memory is None else memory.layers[index]
            x = x + tiles.convolve(x, around)
            x = _by_position(spatial(x, over_space), clips, keep.shape[1])
            x = _by_tile(temporal(x, self._over_time(self.lag_bias[index], past, layers)), clips, tiles.size)
        output = torch.unflatten(self.output(self.norm(x)).to(copied.dtype), 0, (-1, tiles.count))
        output = tiles.join(output).view(*keep.shape, -1)
        size = self.SIZES * torch.tanh(output[..., -1:] / self.SIZES)
        residual = scale * size.exp() * output[..., :-1]
        filled = torch.where((keep & ~means[:, None, None])[..., None], copied, copied + residual)
        # Copies, so that a stream can free the memory of the chunk.
        return filled, Reference(copied[:, -1].clone(), age[:, -1].clone()), Memory(layers, least[:, -1].clone())

    def _least(self, change: Tensor, memory: Memory | None) -> Tensor:
        """(B, G, L, C) changes of kept latents, zero elsewhere -> (B, G) the least so far (without `causal`: of all).
        It is near the threshold or price by which the other latents were dropped."""
        # No gradient: that of the root of no change is infinite.
        size = change.detach().square().mean(-1).sqrt()
        least = torch.where(size > 0, size, torch.inf).amin(2)
        if not self.config.causal:
            return least.amin(1, keepdim=True).expand_as(least)
        return (least if memory is None else torch.minimum(least, memory.least[:, None])).cummin(1).values

    def _embed(
        self, keep: Tensor, means: Tensor, copied: Tensor, change: Tensor, age: Tensor, scale: Tensor, grid: FrameGrid
    ) -> Tensor:
        """Input of the first layer (B * G, L, width)."""
        shared = [x.to(copied.dtype).expand(*keep.shape, 1) for x in (scale.log(), means[:, None, None, None])]
        parts = [copied, change, _log(age), *shared]
        if not self.config.causal:
            following, ahead = next_kept(copied, keep)
            parts += [following - copied, _log(ahead)]
        features = torch.unflatten(torch.cat(parts, -1).flatten(0, 1), 1, grid).permute(0, 3, 1, 2)
        x: Tensor = self.embed(features).flatten(2).transpose(1, 2)
        return x + torch.where(keep.flatten(0, 1)[..., None], 0, self.mask_embedding.to(x.dtype))

    def _over_time(self, lag_bias: Tensor, past: KeysValues | None, record: list[KeysValues]) -> Attend:
        """Attention along time, after the frames of `past`. Keys and values for the next chunk go to `record`."""

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            if past is not None:
                keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
            kept = keys.shape[2] - min(keys.shape[2], self.config.context - 1)
            record.append((keys[:, :, kept:].detach().clone(), values[:, :, kept:].detach().clone()))
            positions = len(queries)
            shared = _shared(positions, keys.shape[2])
            bias = self._by_lag(lag_bias, queries.shape[2], keys.shape[2], shared).to(queries.dtype)
            queries, keys, values = (_in_rows(x, positions // shared) for x in (queries, keys, values))
            return _in_rows(F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias[None]), positions)

        return attend

    def _by_lag(self, lag_bias: Tensor, new: int, known: int, shared: int) -> Tensor:
        """(heads, shared * new, shared * known) attention bias of the last `new` of `known` frames, for `shared`
        positions in a row: by lag, and -inf outside of the context and between positions."""
        context, causal = self.config.context, self.config.causal
        at = torch.arange(known, device=lag_bias.device)
        lag = at[known - new :, None] - at
        seen = (lag < context) & ((lag >= 0) if causal else (lag > -context))
        table = lag.clamp(0, context - 1) if causal else lag.clamp(1 - context, context - 1) + context - 1
        own = torch.eye(shared, dtype=torch.bool, device=lag_bias.device)[:, None, :, None]
        bias = torch.where(own & seen[:, None], lag_bias[:, table][:, None, :, None], float("-inf"))
        return bias.flatten(3, 4).flatten(1, 2)


@dataclass(frozen=True)
class Tiles:
    """The positions of a frame in tiles of at most `side` rows and columns, padded where these do not fit."""

    grid: FrameGrid
    side: int

    @property
    def shape(self) -> FrameGrid:
        """Rows and columns of a tile."""
        return min(self.side, self.grid[0]), min(self.side, self.grid[1])

    @property
    def size(self) -> int:
        """Positions in a tile."""
        return self.shape[0] * self.shape[1]

    @property
    def count(self) -> int:
        """Tiles of a frame."""
        return -(-self.grid[0] // self.shape[0]) * -(-self.grid[1] // self.shape[1])

    @property
    def padding(self) -> FrameGrid:
        """Rows and columns added to a frame."""
        return -self.grid[0] % self.shape[0], -self.grid[1] % self.shape[1]

    def cut(self, x: Tensor) -> Tensor:
        """(N, L, C) -> (N, tiles, positions, C), zero in the padding."""
        (rows, columns), (down, across) = self.shape, self.padding
        x = torch.unflatten(x, 1, self.grid)
        if down or across:
            x = F.pad(x, (0, 0, 0, across, 0, down))
        x = torch.unflatten(torch.unflatten(x, 2, (-1, columns)), 1, (-1, rows))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """(N, tiles, positions, C) -> (N, L, C)."""
        (height, width), across = self.grid, self.padding[1]
        x = torch.unflatten(torch.unflatten(x, 2, self.shape), 1, (-1, (width + across) // self.shape[1]))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width].flatten(1, 2)

    def convolve(self, x: Tensor, convolution: nn.Module) -> Tensor:
        """(N * tiles, positions, C) -> the same of a convolution over whole frames."""
        frames = self.join(torch.unflatten(x, 0, (-1, self.count)))
        images: Tensor = convolution(torch.unflatten(frames.transpose(1, 2), 2, self.grid))
        return self.cut(images.flatten(2).transpose(1, 2)).flatten(0, 1)

    def real(self, device: torch.device) -> Tensor | None:
        """(tiles, positions), False in the padding; None where there is none."""
        if self.padding == (0, 0):
            return None
        return self.cut(torch.ones(1, self.grid[0] * self.grid[1], 1, device=device))[0, ..., 0] > 0


def _over_space(tiles: Tiles, frames: int, device: torch.device) -> Attend:
    """Attention among the positions of a tile, with rotary positions along rows and columns."""
    real = tiles.real(device)
    mask = None if real is None else real[:, None, None].repeat(frames, 1, 1, 1)

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        cosine, sine = _rotary(tiles.shape, queries)
        queries, keys = _rotate(queries, cosine, sine), _rotate(keys, cosine, sine)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)

    return attend


def _rotary(grid: FrameGrid, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions (arXiv 2104.09864) of heads like x (N, heads, L, d): cosines and sines (L, d / 2). Half the
    channels turn with the row, half with the column."""
    quarter = x.shape[-1] // 4
    frequencies = 100.0 ** -(torch.arange(quarter, device=x.device) / quarter)
    row, column = (torch.arange(size, device=x.device)[:, None] * frequencies for size in grid)
    angles = torch.cat([row[:, None].expand(-1, grid[1], -1), column[None].expand(grid[0], -1, -1)], -1).flatten(0, 1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    even, odd = x.chunk(2, -1)
    return torch.cat([torch.addcmul(even * cosine, odd, -sine), torch.addcmul(even * sine, odd, cosine)], -1)


def _shared(positions: int, frames: int) -> int:
    """Positions of `frames` frames in a row of the attention kernels: a power of two that divides `positions`."""
    return math.gcd(positions, 1 << (max(1, _ROW // frames).bit_length() - 1))


def _in_rows(x: Tensor, rows: int) -> Tensor:
    """(N, heads, S, d) -> (rows, heads, N * S / rows, d)."""
    return x.transpose(1, 2).reshape(rows, -1, x.shape[1], x.shape[3]).transpose(1, 2)


def _by_position(x: Tensor, clips: int, frames: int) -> Tensor:
    """(clips * frames * tiles, positions, width) -> (clips * tiles * positions, frames, width)."""
    return x.reshape(clips, frames, -1, x.shape[-1]).transpose(1, 2).flatten(0, 1)


def _by_tile(x: Tensor, clips: int, positions: int) -> Tensor:
    """(clips * tiles * positions, frames, width) -> (clips * frames * tiles, positions, width)."""
    return torch.unflatten(x, 0, (clips, -1)).transpose(1, 2).reshape(-1, positions, x.shape[-1])


def _log(count: Tensor) -> Tensor:
    return count[..., None].float().log1p()
