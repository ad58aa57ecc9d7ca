"""Sizes of an AdapTok tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from genvid.config import Choice
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import QuantizerConfig, VQConfig
from genvid.tokens.frame_blocks import FrameBlocks


@dataclass(frozen=True)
class GeometryConfig(Choice):  # type: ignore[misc]
    """How tokens are placed in space and time, and so the videos that a tokenizer takes."""


@GeometryConfig.register_subclass("absolute")
@dataclass(frozen=True)
class AbsoluteGeometry(GeometryConfig):
    """Published: a vector for every place and a query for every latent of a clip of up to `frames` frames."""


@GeometryConfig.register_subclass("rotary")
@dataclass(frozen=True)
class RotaryGeometry(GeometryConfig):
    """Relative places (genvid.tokenizer.adaptok.rotary): videos of any length, and of sizes near the trained ones."""

    IMPLIED: ClassVar[Mapping[str, Any]] = {"closed_loop": False, "single_first_frame": False}

    window: int = 2
    """Earlier blocks that a block attends to, and over which a dropped latent is carried. Clips of more than
    `window` + 1 blocks train the steady state of a stream."""
    sides: tuple[int, int] = (96, 160)
    """Least and greatest height and width of a frame, in pixels."""
    aspect: tuple[int, int] = (4, 3)
    """Greatest ratio of the longer side to the shorter one."""
    closed_loop: bool = False
    """The encoder reads the kept tokens of earlier blocks, which the decoder has too, in place of their patches and
    latents. Blocks are then encoded one after the other in training as well."""
    single_first_frame: bool = False
    """The first block of a video has one frame, and videos have 1 + 4 n frames where a patch has 4: a picture is a
    video of one frame. It is encoded as a block whose frames are equal, and decoded as the last frame of one."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"geometry.window is at least 1 block, got {self.window}")
        if not 1 <= self.sides[0] <= self.sides[1]:
            raise ValueError(f"geometry.sides are the least and the greatest, got {list(self.sides)}")
        if not 1 <= self.aspect[1] <= self.aspect[0]:
            raise ValueError(f"geometry.aspect is the longer side to the shorter one, got {list(self.aspect)}")

    def check(self, resolution: tuple[int, int], patch: tuple[int, int, int]) -> None:
        """ValueError for frames (height, width) that a tokenizer does not take."""
        (least, most), (long, short) = self.sides, self.aspect
        low, high = sorted(resolution)
        divides = not any(size % part for size, part in zip(resolution, patch[1:], strict=True))
        if not (divides and least <= low and high <= most and high * short <= low * long):
            raise ValueError(
                f"this tokenizer takes frames of {least} to {most} pixels a side up to {long}:{short}, in multiples of "
                f"{patch[1]}x{patch[2]}, got {resolution[0]}x{resolution[1]}: resize them"
            )


@dataclass(frozen=True)
class AdapTokConfig:
    """The defaults are the published model: 16 frames at 128 x 128 in 4 blocks of 512 tokens."""

    RENAMED: ClassVar[Mapping[str, str]] = {"shortcuts": "pooled_queries"}
    IMPLIED: ClassVar[Mapping[str, Any]] = {"geometry": {"type": "absolute"}}

    frames: int = 16
    """Of the longest clip. Shorter clips have fewer blocks. With rotary geometry this is the length of a training clip,
    and videos are of any length."""
    resolution: tuple[int, int] = (128, 128)
    patch: tuple[int, int, int] = (4, 8, 8)
    """Frames, height, width. A block has the frames of a patch."""
    block_capacity: int = 512
    """Latents of a block; with rotary geometry of one at `resolution`, and in proportion to the area at others."""
    encoder: StackConfig = field(default_factory=lambda: StackConfig(768, 12, 12))
    decoder: StackConfig = field(default_factory=lambda: StackConfig(768, 12, 12))
    quantizer: QuantizerConfig = field(default_factory=VQConfig)
    pooled_queries: bool = False
    """Start queries from means over cells of the picture and carry dropped latents over from earlier blocks
    (genvid.tokenizer.adaptok.pooled_queries). The published model does neither, and trains for thousands of steps
    before its latents separate one part of a picture from another."""
    geometry: GeometryConfig = field(default_factory=AbsoluteGeometry)

    def __post_init__(self) -> None:
        self.frame_blocks.num_blocks(self.frames)
        for name, size, part in zip(("height", "width"), self.resolution, self.patch[1:], strict=True):
            if size % part or size < part:
                raise ValueError(f"{size} ({name}) is not a multiple of the patch's {part}")
        if isinstance(self.geometry, RotaryGeometry):
            if not self.pooled_queries:
                raise ValueError("rotary geometry places a latent at its cell: set pooled_queries to true")
            self.geometry.check(self.resolution, self.patch)
            for network in (self.encoder, self.decoder):
                check_rotary_heads(network)

    @property
    def window(self) -> int | None:
        """Earlier blocks that a block attends to; None: all."""
        return self.geometry.window if isinstance(self.geometry, RotaryGeometry) else None

    @property
    def closed_loop(self) -> bool:
        """Whether the encoder reads the kept tokens of earlier blocks in place of their patches and latents."""
        return isinstance(self.geometry, RotaryGeometry) and self.geometry.closed_loop

    @property
    def frame_blocks(self) -> FrameBlocks:
        """The blocks of videos of any length."""
        geometry = self.geometry
        single = isinstance(geometry, RotaryGeometry) and geometry.single_first_frame
        return FrameBlocks(self.patch[0], single_first_frame=single, stream=isinstance(geometry, RotaryGeometry))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks, patch rows and patch columns."""
        return (self.frame_blocks.num_blocks(self.frames), *self.picture_grid(self.resolution))

    def picture_grid(self, resolution: tuple[int, int]) -> tuple[int, int]:
        """Patch rows and columns of frames (height, width)."""
        return resolution[0] // self.patch[1], resolution[1] // self.patch[2]

    def capacity_at(self, resolution: tuple[int, int]) -> int:
        """Latents of a block of frames (height, width): in proportion to the area."""
        return round(self.block_capacity * math.prod(resolution) / math.prod(self.resolution))

    def check_resolution(self, resolution: tuple[int, int]) -> None:
        """ValueError for frames (height, width) that this tokenizer does not take."""
        if isinstance(self.geometry, RotaryGeometry):
            self.geometry.check(resolution, self.patch)
        elif resolution != self.resolution:
            (height, width), (rows, columns) = self.resolution, resolution
            raise ValueError(
                f"this tokenizer takes {height}x{width} frames alone (its geometry is absolute), got {rows}x{columns}: "
                "resize them"
            )

    def check_clip(self, frames: int, resolution: tuple[int, int]) -> None:
        """ValueError for clips that a tokenizer cannot be trained on."""
        self.check_resolution(resolution)
        blocks = self.frame_blocks
        if frames != blocks.filled(frames):
            raise ValueError(
                f"clips of {frames} frames do not fill {blocks.described}: change data.clip, or the bucket, to "
                f"{blocks.lengths()}"
            )
        if self.window is None and frames > self.frames:
            raise ValueError(
                f"clips of {frames} frames are longer than the {self.frames} of this tokenizer, whose geometry is "
                "absolute: change data.clip"
            )


def check_rotary_heads(network: StackConfig) -> None:
    """ValueError where the channels of a head cannot hold rotary positions of three axes."""
    channels = network.width // network.heads
    if channels % 2 or channels < 6:
        raise ValueError(
            f"rotary positions need an even number of at least 6 channels a head, and width {network.width} in "
            f"{network.heads} heads has {channels}"
        )
