"""Endless procedural video with the statistics of natural video: training data that cannot be memorised."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from genvid import noise
from genvid.data.clips import ClipConfig
from genvid.data.sources.base import Source, SourceConfig
from genvid.data.sources.procedural.scene import draw_scene

_LONGEST_SCENE = 96
"""Frames of the video; bounds the canvas of a scene, which covers the whole path of its camera."""


@SourceConfig.register_subclass("procedural")
@dataclass(frozen=True)
class ProceduralConfig(SourceConfig):
    """Drawn clips without end: a clip is a function of `seed`, its item and its own seed, which is new at every step of
    training. `clips` is the number of items: the length of an epoch and of an evaluation."""

    clips: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise ValueError(f"procedural clips must be at least 1, got {self.clips}")

    def split_name(self) -> str:
        return f"seed {self.seed}"

    def open(self, clip: ClipConfig, *, strict: bool = False) -> ProceduralSource:
        return ProceduralSource(self.clips, self.seed, clip)


class ProceduralSource(Source):
    """Clips of one class. Each is a video of its own, just as long as a clip, to which the clip rule applies."""

    def __init__(self, clips: int, seed: int, clip: ClipConfig) -> None:
        self.config, self.classes, self.labels, self.split = clip, ["procedural"], [0] * clips, f"seed {seed}"
        self.names = [f"procedural/{seed}/{i}" for i in range(clips)]
        self._seeds = noise.sample_seeds(seed, "procedural", torch.arange(clips))

    def clip(self, index: int, seed: int) -> Tensor:
        own = int(noise.fold(self._seeds[index], torch.tensor(seed)))
        rng = np.random.default_rng(own % 2**64)
        video = draw_video(rng, self.config.frames, self.config.stride, self.config.resolution)
        return self.config.fit(video.permute(1, 2, 3, 0), seed)


def draw_video(rng: np.random.Generator, frames: int, stride: int, resolution: tuple[int, int]) -> Tensor:
    """(3, frames, *resolution) uint8: every `stride`-th frame of one or several scenes."""
    video = torch.empty(3, frames, *resolution, dtype=torch.uint8)
    for start, end in pairwise(_cuts(rng, frames, stride)):
        scene = draw_scene(rng, np.arange(start, end) * float(stride), resolution)
        video[:, start:end] = scene.mul_(255).add_(0.5).clamp_(0, 255.5).to(torch.uint8)
    return video


def _cuts(rng: np.random.Generator, frames: int, stride: int) -> list[int]:
    """First frames of the scenes, and the end. One clip of twelve belongs to a video of quick cuts."""
    mean, start, starts = (12 if rng.random() < 1 / 12 else 400), 0, [0]
    while True:
        length = 3 + min(rng.exponential(mean), _LONGEST_SCENE - 3)
        start += max(1, round(length / stride))
        if start >= frames:
            return [*starts, frames]
        starts.append(start)
