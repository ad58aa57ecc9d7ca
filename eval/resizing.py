"""Resize rules of publications, where they differ from ours: the size before the crop, where it lies, the filter.

At 128, frames of 480x854 get 228 columns by our rule and by TATS's, 227 by torchvision's. One column more or less
shifts the picture: 28 to 31 dB between the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from genvid.data.clips import ClipConfig, to_float
from genvid.data.video import VideoInfo


@dataclass(frozen=True)
class TorchvisionClip(ClipConfig):
    """`Resize(side, antialias=True)` and `CenterCrop(side)` of torchvision, which LARP and AdapTok use: the long side
    is cut down to whole pixels, and the crop begins at the nearest one, of two the even one."""

    def covering(self, height: int, width: int, zoom: float = 1.0) -> tuple[int, int]:
        short, side = min(height, width), min(self.resolution) * zoom
        return int(side * height / short), int(side * width / short)

    def margin(self, spare: int) -> int:
        return round(spare / 2)


@dataclass(frozen=True)
class TatsClip(ClipConfig):
    """`preprocess` of TATS (and VideoGPT): the long side is rounded up to whole pixels, bilinear, not antialiased."""

    antialias: ClassVar[bool] = False

    def covering(self, height: int, width: int, zoom: float = 1.0) -> tuple[int, int]:
        scale = min(self.resolution) * zoom / min(height, width)
        if height < width:
            return min(self.resolution), math.ceil(width * scale)
        return math.ceil(height * scale), min(self.resolution)


@dataclass(frozen=True)
class DistributedClip(ClipConfig):
    """Frames as their files hold them, of any aspect ratio, one side of which has `resolution` pixels."""

    def refusal(self, info: VideoInfo) -> str | None:
        if self.resolution[0] not in (info.height, info.width):
            return f"has frames of {info.height}x{info.width}, not {self.resolution[0]}p"
        return super().refusal(info)

    def fit(self, video: Tensor, seed: int) -> Tensor:
        return to_float(video.permute(3, 0, 1, 2))
