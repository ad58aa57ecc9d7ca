"""Clips: the number, the choice and the size of frames of a video."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, permutations
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genvid import noise
from genvid.data.video import VideoError, VideoInfo, iterate_frames
from genvid.tokens.blocks import TokenizerSpec

_COLOURS = [list(order) for order in permutations(range(3))]


@dataclass(frozen=True)
class ClipConfig:
    """A clip: `frames` frames, every `stride`-th of the video, resized to cover `resolution` and cropped to it.

    Defaults are AdapTok's and LARP's: 16 consecutive frames at the native frame rate, short side 128, centre crop.
    """

    frames: int = 16
    stride: int = 1
    resolution: tuple[int, int] = (128, 128)
    """Height and width."""
    crop: Literal["center", "random"] = "center"
    window: Literal["random", "first", "all", "whole"] = "random"
    """Where in its video a clip lies: drawn from its seed, the first frames, or (for evaluation) every
    non-overlapping window as an item of its own. "whole" is the video from its first to its last frame, of whatever
    length; `frames` are then the fewest that it must have."""
    zoom: float = 1.0
    """Clips are enlarged by a factor that is drawn from 1 to this, evenly in its logarithm, before they are cropped.
    With a `resolution` below that of the videos this makes small things of large ones as well as large of small."""
    flip: bool = False
    """Mirror half of the clips. Not where left and right are different classes."""
    turn: bool = False
    """Turn clips by 0, 90, 180 or 270 degrees. This, `reverse` and `recolour` make 96 clips of one, for tasks with few
    videos and no use of their content."""
    reverse: bool = False
    """Play half of the clips backwards."""
    recolour: bool = False
    """Exchange the colour channels, and make negatives of half of the clips."""
    rounded: bool = True
    """Whether the resized frame is rounded to 8 bits. LARP's evaluation does not: pixels are then float."""

    antialias: ClassVar[bool] = True
    """Of all clips but those of a publication that does without (genvid.eval.resizing)."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride < 1:
            raise ValueError(f"a clip needs frames >= 1 and stride >= 1, got {self.frames} and {self.stride}")
        if min(self.resolution) < 1:
            raise ValueError(f"resolution is (height, width) in pixels, got {self.resolution}")
        if self.zoom < 1:
            raise ValueError(f"zoom is at least 1, got {self.zoom}")

    @property
    def span(self) -> int:
        """Frames of the video that a clip covers."""
        return (self.frames - 1) * self.stride + 1

    @property
    def drawn(self) -> bool:
        """Whether a clip of a video depends on its seed."""
        varied = self.flip or self.turn or self.reverse or self.recolour
        return varied or self.zoom > 1 or self.crop == "random" or self.window == "random"

    def length(self, video_frames: int) -> int:
        """Frames of a clip of a video."""
        return (video_frames - 1) // self.stride + 1 if self.window == "whole" else self.frames

    def start(self, video_frames: int, seed: int) -> int:
        """First frame of the random window of a clip with this seed."""
        return math.floor(_draw(seed, "start", 1)[0] * (video_frames - self.span + 1))

    def refusal(self, info: VideoInfo) -> str | None:
        """Why no clip can be cut from a video, as the end of a sentence about it; None where one can."""
        return None if info.frames >= self.span else f"has {info.frames} frames but a clip needs {self.span}"

    def cover(self, images: Tensor, zoom: float = 1.0) -> Tensor:
        """(T, 3, H, W) -> the same, antialiased, at `zoom` times the smallest size that covers `resolution`."""
        size = self.covering(images.shape[2], images.shape[3], zoom)
        if size == tuple(images.shape[2:]):
            return images
        return F.interpolate(images, size, mode="bilinear", antialias=self.antialias)

    def covering(self, height: int, width: int, zoom: float = 1.0) -> tuple[int, int]:
        """Height and width that a frame of height x width pixels is resized to."""
        scale = max(self.resolution[0] / height, self.resolution[1] / width) * zoom
        return round(height * scale), round(width * scale)

    def margin(self, spare: int) -> int:
        """Pixels before a centred crop that leaves out `spare` of them."""
        return spare // 2

    def fit(self, video: Tensor, seed: int) -> Tensor:
        """(T, H, W, 3) uint8 frames -> (3, T, *resolution): resized (antialiased bilinear), cropped, varied.

        uint8, or float32 in [-1, 1] where the clip is not `rounded`.
        """
        quarters = math.floor(4 * _draw(seed, "turn", 1)[0]) if self.turn else 0
        turned = replace(self, resolution=self.resolution[::-1]) if quarters % 2 else self
        images = turned._crop(video.permute(0, 3, 1, 2), seed)
        if quarters:  # a turn by nothing would be a copy
            images = images.rot90(quarters, (2, 3))
        return self._vary(images, seed).permute(1, 0, 2, 3).contiguous()

    def _crop(self, images: Tensor, seed: int) -> Tensor:
        """(T, 3, H, W) uint8 -> (T, 3, *resolution), mirrored or not."""
        zoom = self.zoom ** _draw(seed, "zoom", 1)[0] if self.zoom > 1 else 1.0
        images = self.cover(images if self.rounded else to_float(images), zoom)
        (height, width), size = self.resolution, images.shape[2:]
        down, across, mirror = _draw(seed, "fit", 3) if self.crop == "random" or self.flip else (0.5, 0.5, 1.0)
        if self.crop == "center":
            top, left = self.margin(size[0] - height), self.margin(size[1] - width)
        else:
            top, left = math.floor(down * (size[0] - height + 1)), math.floor(across * (size[1] - width + 1))
        images = images[:, :, top : top + height, left : left + width]
        return images.flip(-1) if self.flip and mirror < 0.5 else images

    def _vary(self, images: Tensor, seed: int) -> Tensor:
        """(T, 3, H, W), reversed and recoloured."""
        if self.reverse and _draw(seed, "reverse", 1)[0] < 0.5:
            images = images.flip(0)
        if self.recolour:
            order, negative = _draw(seed, "recolour", 2)
            images = images[:, _COLOURS[math.floor(order * len(_COLOURS))]]
            if negative < 0.5:
                images = 255 - images if self.rounded else -images
        return images


def to_float(video: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1]."""
    return video.to(torch.float32, copy=True, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_uint8(video: Tensor) -> Tensor:
    """Float, clamped to [-1, 1] -> uint8 in 0..255, rounded. The exact inverse of `to_float`."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _draw(seed: int, stream: str, count: int) -> list[float]:
    values: list[float] = noise.uniform(torch.tensor([seed]), stream, count)[0].tolist()
    return values


def read_frames(path: str | Path, info: VideoInfo, spec: TokenizerSpec) -> Iterator[Tensor]:
    """Every frame (3, 1, H, W) uint8 of a video file, resized and centre-cropped for the tokenizer as it comes.

    VideoError where the file ends before `info.frames` frames.
    """
    rule, frames = ClipConfig(frames=1, resolution=spec.resolution), iterate_frames(path, info)
    for number in range(info.frames):
        frame = next(frames, None)
        if frame is None:
            raise VideoError(f"{path} ended after {number} frames; it had {info.frames} when it was probed")
        yield rule.fit(torch.from_numpy(frame[None]), seed=0)


def read_clips(path: str | Path, info: VideoInfo, spec: TokenizerSpec) -> Iterator[Tensor]:
    """The consecutive clips (3, T, H, W) of a video file, in [-1, 1]; the file is decoded once, from its beginning."""
    frames = read_frames(path, info, spec)
    for clip in spec.clips(info.frames):
        read = list(islice(frames, clip.frames))
        yield to_float(torch.cat([*read, *read[-1:] * clip.filling], 1))
