"""Procedural clips whose class is their motion and whose complexity varies: the test bed of adaptive tokens.

A tokenizer that spends tokens by content should spend few on a plain clip and many on a busy one or after a cut,
and a generator conditioned on the class must reproduce its motion. Every clip is a pure function of (seed, index).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genvid import noise
from genvid.data.clips import ClipConfig
from genvid.data.sources.base import Source, SourceConfig

MOTIONS = ("still", "right", "left", "up", "down", "circle", "grow", "shrink")
"""The classes. A motion spans the clip, whatever its number of frames."""
COMPLEXITIES = ("plain", "slow", "busy", "cut")
"""plain: one shape. slow: the same with 0.6 of the movement. busy: four shapes. cut: one or two changes of scene, the
motion goes on."""
SHAPES = ("disc", "square", "diamond", "triangle", "ring")

Array = NDArray[np.floating[Any]]
Draw = Callable[[float, float], float]
"""The next random number of a scene, between two limits."""

_SOFTNESS = 5.0
"""Pixels over which an edge fades: hard edges are costly to learn and show nothing of motion."""
_DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}


class SyntheticSource(Source):
    """Item i has motion i % 8 and, of four complexities, number (i // 8) % 4: every stretch of 32 items is balanced."""

    def __init__(
        self,
        clips: int,
        seed: int,
        clip: ClipConfig,
        complexities: Sequence[str] = COMPLEXITIES,
        shapes: Sequence[str] = SHAPES,
    ) -> None:
        self.config, self.classes, self.split = clip, list(MOTIONS), f"seed {seed}"
        self.complexities, self.shapes = tuple(complexities), tuple(shapes)
        self.labels = [i % len(MOTIONS) for i in range(clips)]
        chosen = [(self.complexities, COMPLEXITIES), (self.shapes, SHAPES)]
        group = "/".join([f"{seed}", *("+".join(some) for some, every in chosen if some != every)])
        self.names = [f"synthetic/{group}/{i}" for i in range(clips)]
        self._seeds = noise.sample_seeds(seed, "synthetic", torch.arange(clips))

    def clip(self, index: int, seed: int) -> Tensor:
        complexity = self.complexities[self.attributes(index)["complexity"]]
        return render(
            self._seeds[index : index + 1],
            MOTIONS[self.labels[index]],
            complexity,
            frames=self.config.frames,
            resolution=self.config.resolution,
            shapes=self.shapes,
        )

    def attributes(self, index: int) -> dict[str, int]:
        return {"complexity": index // len(MOTIONS) % len(self.complexities)}


@SourceConfig.register_subclass("synthetic")
@dataclass(frozen=True)
class SyntheticConfig(SourceConfig):
    """Drawn clips at the clip's own size; another `seed` gives another split. Stride, window, crop and flip of the
    clip rule do not apply (a mirrored `left` would be a `right`)."""

    clips: int = 4096
    seed: int = 0
    complexities: tuple[str, ...] = COMPLEXITIES
    shapes: tuple[str, ...] = SHAPES

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise ValueError(f"synthetic clips must be at least 1, got {self.clips}")
        choices = {"complexities": (self.complexities, COMPLEXITIES), "shapes": (self.shapes, SHAPES)}
        for name, (chosen, known) in choices.items():
            if not chosen or not set(chosen) <= set(known):
                raise ValueError(f"{name} are one or more of {', '.join(known)}, got {list(chosen)}")

    def split_name(self) -> str:
        return f"seed {self.seed}"

    def open(self, clip: ClipConfig, *, strict: bool = False) -> SyntheticSource:
        return SyntheticSource(self.clips, self.seed, clip, self.complexities, self.shapes)


def render(
    seed: Tensor,
    motion: str,
    complexity: str,
    *,
    frames: int,
    resolution: tuple[int, int],
    shapes: Sequence[str] = SHAPES,
) -> Tensor:
    """One clip, (3, T, H, W) uint8, from its (1,) int64 seed."""
    progress = np.linspace(0, 1, frames, dtype=np.float32)
    cuts = []
    if complexity == "cut":
        first, second, both = noise.uniform(seed, "cuts", 3)[0].tolist()
        cuts = [0.2 + 0.25 * first] + ([0.55 + 0.25 * second] if both < 0.5 else [])
    bounds = [0, *(round(cut * frames) for cut in cuts), frames]
    video = np.empty((3, frames, *resolution), np.float32)
    for scene, (start, end) in enumerate(pairwise(bounds)):
        _draw_scene(video[:, start:end], _draws(seed, scene), motion, complexity, shapes, progress[start:end])
    return torch.from_numpy((video * 255 + 0.5).astype(np.uint8))


def _draws(seed: Tensor, scene: int) -> Draw:
    numbers = iter(noise.uniform(seed, f"scene {scene}", 96)[0].tolist())
    return lambda low, high: low + (high - low) * next(numbers)


def _draw_scene(video: Array, draw: Draw, motion: str, complexity: str, shapes: Sequence[str], progress: Array) -> None:
    """Paint ground and shapes into a (3, T, H, W) view. Lengths are in units of the short side."""
    busy = complexity == "busy"
    side = min(video.shape[2:])
    y = ((np.arange(video.shape[2], dtype=np.float32) + 0.5) / side)[:, None]
    x = ((np.arange(video.shape[3], dtype=np.float32) + 0.5) / side)[None, :]
    video[:] = _colour(int(draw(0, 6)), 0.5, 0.2)[:, None]
    for _ in range(4 if busy else 1):
        radius = draw(0.12, 0.16) if busy else draw(0.17, 0.22)
        centre_x, centre_y, scale = _path(draw, motion, radius, progress, complexity, (x[0, -1], y[-1, 0]))
        along = (x - centre_x[:, None, None]) / scale[:, None, None]
        down = (y - centre_y[:, None, None]) / scale[:, None, None]
        distance = _DISTANCES[shapes[int(draw(0, len(shapes)))]](along, down, radius) * scale[:, None, None]
        cover = np.clip(0.5 - distance * side / _SOFTNESS, 0, 1)
        video += cover * (_colour(int(draw(0, 6)), 0.7, 1.0)[:, None] - video)


def _path(
    draw: Draw, motion: str, radius: float, progress: Array, complexity: str, extent: tuple[float, float]
) -> tuple[Array, Array, Array]:
    """Centre and scale of a shape in every frame, each (T,)."""
    pace = 0.6 if complexity == "slow" else 1.0
    ones = np.ones_like(progress)
    if motion == "circle":
        angle = 2 * np.pi * (draw(0, 1) + pace * progress)
        orbit = draw(0.24, 0.3)
        middle_x, middle_y = extent[0] / 2 + draw(-0.05, 0.05), extent[1] / 2 + draw(-0.05, 0.05)
        return middle_x + orbit * np.cos(angle), middle_y + orbit * np.sin(angle), ones
    swell = 1.65**pace if motion in ("grow", "shrink") else 1.0
    step_x, step_y = _DIRECTIONS.get(motion, (0, 0))
    reach = pace * draw(0.4, 0.5)
    centre = []
    for step, length in ((step_x, extent[0]), (step_y, extent[1])):
        margin = radius * swell + abs(step) * reach / 2
        centre.append(draw(margin, length - margin) + step * reach * (progress - 0.5))
    exponent = {"grow": 2 * progress - 1, "shrink": 1 - 2 * progress}.get(motion, 0 * progress)
    return centre[0] * ones, centre[1] * ones, (swell**exponent).astype(np.float32)


def _colour(hue: int, saturation: float, value: float) -> Array:
    """One of six hues, (3, 1, 1) in 0..1. With few colours, tokens go to form and motion."""
    k = (np.array([5, 3, 1], np.float32) + hue) % 6
    colour: Array = (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)
    return colour[:, None, None]


def _disc(x: Array, y: Array, r: float) -> Array:
    return np.sqrt(x * x + y * y) - r


def _square(x: Array, y: Array, r: float) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.85 * r


def _diamond(x: Array, y: Array, r: float) -> Array:
    return (np.abs(x) + np.abs(y)) * 0.7071 - 0.8 * r


def _triangle(x: Array, y: Array, r: float) -> Array:
    return np.maximum(np.abs(x) * 0.866 - y * 0.5, y) - 0.6 * r


def _ring(x: Array, y: Array, r: float) -> Array:
    return np.abs(np.sqrt(x * x + y * y) - 0.75 * r) - 0.3 * r


_DISTANCES = dict(zip(SHAPES, (_disc, _square, _diamond, _triangle, _ring), strict=True))
"""Signed distance to the outline, negative inside: antialiased edges for one subtraction."""
