"""Sizes of an AdapTok tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import QuantizerConfig, VQConfig


@dataclass(frozen=True)
class AdapTokConfig:
    """The defaults are the published model: 16 frames at 128 x 128 in 4 blocks of 512 tokens."""

    RENAMED: ClassVar[Mapping[str, str]] = {"shortcuts": "pooled_queries"}

    frames: int = 16
    """Of the longest clip. Shorter clips are a multiple of the block's frames."""
    resolution: tuple[int, int] = (128, 128)
    patch: tuple[int, int, int] = (4, 8, 8)
    """Frames, height, width. A block has the frames of a patch."""
    block_capacity: int = 512
    encoder: StackConfig = field(default_factory=lambda: StackConfig(768, 12, 12))
    decoder: StackConfig = field(default_factory=lambda: StackConfig(768, 12, 12))
    quantizer: QuantizerConfig = field(default_factory=VQConfig)
    pooled_queries: bool = False
    """Start queries from means over cells of the picture and carry dropped latents over from earlier blocks
    (genvid.tokenizer.adaptok.pooled_queries). The published model does neither, and trains for thousands of steps
    before its latents separate one part of a picture from another."""

    def __post_init__(self) -> None:
        for name, size, part in zip(
            ("frames", "height", "width"), (self.frames, *self.resolution), self.patch, strict=True
        ):
            if size % part or size < part:
                raise ValueError(f"{size} ({name}) is not a multiple of the patch's {part}")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks, patch rows and patch columns."""
        return (
            self.frames // self.patch[0],
            self.resolution[0] // self.patch[1],
            self.resolution[1] // self.patch[2],
        )
