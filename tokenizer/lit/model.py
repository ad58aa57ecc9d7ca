"""LIT: a frozen codec and an inpainter as a `genvid.tokens.VideoTokenizer`.

A block is a latent frame, its tokens are the codec's latents in row-major order, unscaled. An allocator drops some of
them; `decode` fills these and runs the codec's decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from genvid.checkpoint import Model
from genvid.frozen import Frozen
from genvid.provenance import check_made_from
from genvid.tokenizer.lit.codecs.cells import CellCodecConfig as CellCodecConfig
from genvid.tokenizer.lit.codecs.codec import Codec, CodecConfig, CodecSpec
from genvid.tokenizer.lit.codecs.diffusers_codec import DiffusersCodecConfig as DiffusersCodecConfig
from genvid.tokenizer.lit.codecs.torchscript_codec import TorchScriptCodecConfig as TorchScriptCodecConfig
from genvid.tokenizer.lit.inpainter import FrameGrid, Inpainter, InpainterConfig, Memory
from genvid.tokenizer.lit.metric import by_metric, measure_metric
from genvid.tokenizer.lit.reference import Reference, interpolate, last_kept
from genvid.tokens import BlockTokens
from genvid.tokens.blocks import LatentSteps, MeanTokens

Filler = Callable[[BlockTokens], Tensor]
"""Tokens -> all latents (B, G, L, C), kept ones unchanged, dropped ones never read."""


@dataclass(frozen=True)
class LITConfig:
    """The codec by its source: a model folder of LIT does not contain the codec's weights."""

    codec: CodecConfig
    resolution: tuple[int, int] = (128, 128)
    """Height and width of `spec`; `at` gives the tokenizer for another one."""
    inpainter: InpainterConfig = field(default_factory=InpainterConfig)


class LIT(Model):
    """The tokenizer. Latents are compared by their `mean` (C,) and `metric` (C, C); `pixel_error` () is the mean
    squared error of pixels in [0, 1] at a squared distance of 1. All three are set by `measure`."""

    model_type = "lit"
    config_type = LITConfig
    config: LITConfig
    mean: Tensor
    metric: Tensor
    inverse: Tensor
    pixel_error: Tensor

    def __init__(self, config: LITConfig) -> None:
        super().__init__(config)
        self._codec = Frozen(config.codec.load())
        self.resolution = config.resolution
        channels = self.spec.token_dim
        mean, std = self.codec.statistics() or (torch.zeros(channels), torch.ones(channels))
        self.register_buffer("mean", mean.float().clone())  # the codec may give its own buffer
        self.register_buffer("metric", std.float().reciprocal().diag())
        self.register_buffer("inverse", std.float().diag())
        self.register_buffer("pixel_error", torch.tensor(0.1))
        self.inpainter = Inpainter(channels, config.inpainter)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """ProvenanceError where the codec is not the one that the inpainter was trained on."""
        lit = super().load(folder)
        way_out = "put the codec that it was trained on back in its place, or train it anew"
        check_made_from(folder, lit.origin.made_from, {"codec": lit.codec.fingerprint()}, way_out)
        return lit

    @property
    def codec(self) -> Codec:
        return self._codec.network

    @property
    def spec(self) -> CodecSpec:
        return self.codec.spec(self.resolution)

    @property
    def grid(self) -> FrameGrid:
        """Rows and columns of a block."""
        space = self.codec.geometry.spatial_stride
        return self.resolution[0] // space, self.resolution[1] // space

    @property
    def latent_steps(self) -> LatentSteps:
        """A sixteenth of the deviation of each channel, as the metric has it: latents take about 6 bits a channel."""
        deviation = self.inverse.double().norm(dim=0)
        return LatentSteps(self.grid[1], tuple(self.mean.tolist()), tuple((deviation / 16).tolist()))

    def measure(self, video: Tensor) -> None:
        """Measure the metric of the codec's latents on typical clips (N, 3, T, H, W).

        Until then channels are divided by the codec's published standard deviations, if any, and a squared distance of
        1 counts as an error of 10 dB.
        """
        self.mean, self.metric, pixel_error = measure_metric(self.codec, video)
        self.pixel_error = self.metric.new_tensor(pixel_error)
        self.inverse = torch.linalg.inv(self.metric)

    def at(self, resolution: tuple[int, int]) -> Self:
        """The same weights for frames of another size."""
        other = copy.copy(self)
        other.resolution = resolution
        other.codec.spec(resolution)
        return other

    @torch.no_grad()
    def encode(self, video: Tensor) -> BlockTokens:
        """(B, 3, T, H, W) in [-1, 1] -> the codec's latents, all kept."""
        self.spec.check_video(video)
        return as_tokens(self.codec.encode(video))

    @torch.no_grad()
    def decode(self, tokens: BlockTokens) -> Tensor:
        """Tokens -> (B, 3, T, H, W). With every token kept: the codec's own reconstruction, bit for bit."""
        return self.render(self.fill(tokens))

    def fill(self, tokens: BlockTokens) -> Tensor:
        """Latents, dropped ones filled by the inpainter. Kept ones are unchanged unless they are `MeanTokens`."""
        exact = bool(tokens.keep.all()) and not isinstance(tokens, MeanTokens)
        return self.check(tokens) if exact else self.restore(tokens)[0]

    def restore(
        self, tokens: BlockTokens, start: Reference | None = None, memory: Memory | None = None
    ) -> tuple[Tensor, Reference, Memory]:
        """`fill` for the next tokens of a stream, with its caches; also the caches for the tokens after them."""
        latents, keep = self.check(tokens, first=start is None), tokens.keep
        means = keep.new_full((len(keep),), isinstance(tokens, MeanTokens))
        filled, *caches = self.inpainter(self.normalise(latents), keep, means, self.grid, start, memory)
        exact = (keep & ~means[:, None, None])[..., None]
        return torch.where(exact, latents, self.denormalise(filled).to(latents.dtype)), *caches

    def render(self, latents: Tensor) -> Tensor:
        """Latents (B, G, L, C) through the codec's decoder -> (B, 3, T, H, W), differentiable."""
        return self.codec.decode(as_grid(latents, self.grid))

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents minus their mean, by the metric; float32, about unit scale."""
        return by_metric(latents.float() - self.mean, self.metric)

    def denormalise(self, latents: Tensor) -> Tensor:
        return by_metric(latents, self.inverse) + self.mean

    def check(self, tokens: BlockTokens, *, first: bool = True) -> Tensor:
        """The latents of tokens, or ValueError if their shape does not fit. `first`: they begin a video."""
        wanted = (self.spec.block_capacity, self.spec.token_dim)
        if tokens.latents is None or tuple(tokens.latents.shape[2:]) != wanted:
            shape = None if tokens.latents is None else tuple(tokens.latents.shape)
            raise ValueError(
                f"LIT at {self.resolution[0]}x{self.resolution[1]} decodes latents (B, G, {wanted[0]}, {wanted[1]}), "
                f"got {'no latents' if shape is None else shape}"
            )
        if first and not bool(tokens.keep[:, 0].all()):
            raise ValueError("the first block must be complete: there is nothing to fill its dropped tokens from")
        return tokens.latents


def fill_by_copying(tokens: BlockTokens) -> Tensor:
    """Copy-forward of the last kept latent."""
    assert tokens.latents is not None
    return last_kept(tokens.latents, tokens.keep)[0]


def fill_by_interpolation(tokens: BlockTokens) -> Tensor:
    """Linear interpolation between kept latents."""
    assert tokens.latents is not None
    return interpolate(tokens.latents, tokens.keep)


def as_tokens(latents: Tensor) -> BlockTokens:
    """(B, C, G, h, w) -> tokens, all kept."""
    tokens = latents.flatten(3).permute(0, 2, 3, 1).contiguous()
    return BlockTokens(torch.ones(tokens.shape[:3], dtype=torch.bool, device=tokens.device), latents=tokens)


def as_grid(latents: Tensor, grid: FrameGrid) -> Tensor:
    """(B, G, L, C) -> (B, C, G, h, w)."""
    return torch.unflatten(latents.permute(0, 3, 1, 2), 3, grid).contiguous()
