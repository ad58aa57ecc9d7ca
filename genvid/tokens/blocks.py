"""The value and the contract that every stage shares: tokens of a video, in causal blocks, some kept.

Shapes: B videos, C channels, T frames, H x W pixels, G blocks, L block capacity, D token channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from genvid.tokens.frame_blocks import FrameBlocks

BITS_PER_CHANNEL = 16
"""Of a continuous token: half precision, no entropy coding."""


@dataclass(frozen=True)
class TokenizerSpec(FrameBlocks):
    """Shapes of the videos that a tokenizer takes, and of the tokens that it makes."""

    resolution: tuple[int, int]
    block_capacity: int
    token_dim: int
    codebook_size: int | None = None
    """None for continuous tokens."""

    def check_video(self, video: Tensor) -> int:
        """Number of blocks of a (B, 3, T, H, W) video; raises ValueError in words when it does not fit."""
        self.check_frames(video)
        return self.num_blocks(video.shape[2])

    def check_frames(self, video: Tensor) -> None:
        """`check_video` for a video of any length."""
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"a video is (B, 3, T, H, W), got {tuple(video.shape)}")
        if tuple(video.shape[-2:]) != self.resolution:
            height, width = self.resolution
            raise ValueError(
                f"this tokenizer takes {height}x{width} frames, got {video.shape[-2]}x{video.shape[-1]}; resize first"
            )

    def clip_bits(self, tokens: BlockTokens) -> Tensor:
        """(B,) float64: bits to transmit each clip, which are those of its kept tokens and `side_bits`.

        A discrete token costs log2(codebook size) bits, a continuous one 16 bits a channel.
        """
        per_token = math.log2(self.codebook_size) if self.codebook_size else BITS_PER_CHANNEL * self.token_dim
        return tokens.keep.sum((1, 2)).double() * per_token + self.side_bits(tokens.keep)

    def side_bits(self, keep: Tensor) -> Tensor:
        """(B, G, L) keep mask -> (B,) float64 bits to transmit it.

        A block that keeps a prefix costs log2(L + 1) bits for its length, any other L bits for its mask.
        """
        capacity = keep.shape[-1]
        is_prefix = (keep[..., 1:] <= keep[..., :-1]).all(-1)
        return torch.where(is_prefix, math.log2(capacity + 1), float(capacity)).double().sum(1)


@dataclass(frozen=True)
class BlockTokens:
    """Tokens of B videos in G causal blocks of L positions; `keep` marks those that are transmitted.

    Values at other positions are unspecified and must not be read.
    """

    keep: Tensor
    """(B, G, L) bool."""
    codes: Tensor | None = None
    """(B, G, L) int64 codebook indices; discrete tokenizers."""
    latents: Tensor | None = None
    """(B, G, L, D) float; continuous tokenizers."""
    features: Tensor | None = None
    """(B, G, L, F) float encoder output before quantization: side information for distortion predictors.
    Never transmitted, never needed to decode."""

    def __post_init__(self) -> None:
        if self.keep.ndim != 3 or self.keep.dtype != torch.bool:
            raise ValueError(f"keep is a (B, G, L) bool mask, got {tuple(self.keep.shape)} {self.keep.dtype}")
        for name in ("codes", "latents", "features"):
            value = getattr(self, name)
            if value is not None and value.shape[:3] != self.keep.shape:
                raise ValueError(f"{name} of shape {tuple(value.shape)} does not match keep {tuple(self.keep.shape)}")

    @property
    def lengths(self) -> Tensor:
        """(B, G) int64 kept tokens per block."""
        return self.keep.sum(-1)

    def tail_drop(self, lengths: Tensor) -> Self:
        """Keep the first `lengths` (B, G) tokens of each block, of those that were kept before."""
        first = first_tokens(lengths, self.keep.shape[-1])  # of lengths on the CPU: one copy, and no wait for the GPU
        return replace(self, keep=self.keep & first.to(self.keep.device, non_blocking=self.keep.is_cuda))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Select videos."""
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device | str) -> Self:
        return self._each(lambda value: value.to(device))

    @staticmethod
    def concatenate(parts: list[BlockTokens]) -> BlockTokens:
        """Join videos; every part must be of one kind and carry the same fields."""
        return BlockTokens._join(parts, 0)

    def blocks(self, chosen: slice) -> BlockTokens:
        """These blocks of every video, of discrete tokens without features."""
        return BlockTokens(self.keep[:, chosen], None if self.codes is None else self.codes[:, chosen])

    def select_blocks(self, chosen: slice) -> Self:
        """These blocks of every video, with all fields."""
        return self._each(lambda value: value[:, chosen])

    @staticmethod
    def join_blocks(parts: list[BlockTokens]) -> BlockTokens:
        """Join consecutive blocks of the same videos; every part must be of one kind and carry the same fields."""
        return BlockTokens._join(parts, 1)

    @staticmethod
    def _join(parts: list[BlockTokens], dim: int) -> BlockTokens:
        columns = zip(*(part._tensors() for part in parts), strict=True)
        return type(parts[0])(*(None if c[0] is None else torch.cat(c, dim) for c in columns))  # type: ignore[arg-type]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same tokens with every tensor changed."""
        return type(self)(*(None if value is None else change(value) for value in self._tensors()))  # type: ignore[arg-type]

    def _tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        return self.keep, self.codes, self.latents, self.features


@dataclass(frozen=True)
class MeanTokens(BlockTokens):
    """Tokens whose kept latents are means: of the kept latent and the dropped ones after it at its position.

    Copied forward they have the least squared error. A kept latent is thus an estimate, which inpainters correct too.
    """


@runtime_checkable
class VideoTokenizer(Protocol):
    """Video <-> block tokens: the contract of AdapTok and LIT."""

    @property
    def spec(self) -> TokenizerSpec: ...

    def encode(self, video: Tensor) -> BlockTokens:
        """(B, 3, T, H, W) in [-1, 1] -> tokens, all kept."""
        ...

    def decode(self, tokens: BlockTokens) -> Tensor:
        """Tokens -> (B, 3, T, H, W), about [-1, 1] (not clamped). Never reads a dropped token."""
        ...


@runtime_checkable
class ResizableTokenizer(VideoTokenizer, Protocol):
    """A tokenizer for frames of more than one size."""

    def at(self, resolution: tuple[int, int]) -> Self:
        """The same weights for frames (height, width) of another size."""
        ...


@runtime_checkable
class CodebookTokenizer(VideoTokenizer, Protocol):
    """A tokenizer whose codes stand for vectors."""

    def codebook(self) -> Tensor:
        """(codebook size, token_dim)."""
        ...


@dataclass(frozen=True)
class LatentSteps:
    """How a file rounds the latents of a continuous tokenizer: channel c to mean[c] plus a multiple of step[c]."""

    columns: int
    """Of the positions of a block, which are a grid in row-major order."""
    mean: tuple[float, ...]
    step: tuple[float, ...]


@runtime_checkable
class ContinuousTokenizer(VideoTokenizer, Protocol):
    """A tokenizer whose tokens are latents."""

    @property
    def latent_steps(self) -> LatentSteps: ...


def first_tokens(lengths: Tensor, capacity: int) -> Tensor:
    """(...) lengths of blocks -> (..., capacity) bool: their first so many tokens."""
    return torch.arange(capacity, device=lengths.device) < lengths[..., None]
