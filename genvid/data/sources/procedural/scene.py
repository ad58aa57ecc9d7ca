"""A scene without cuts: a ground, layers before it, moving objects, light, and the grain of the sensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genvid.data.sources.procedural.bank import OUTLINE_SIZES, bank
from genvid.data.sources.procedural.canvas import Palette, blur, draw_object, fill, pick_outline, scatter, smear, stamp
from genvid.data.sources.procedural.motion import Warp, Wobble, camera, own_motion, sample, travel, turning
from genvid.data.sources.procedural.outlines import Array, Rng

_LARGEST = OUTLINE_SIZES[-1]
_ALL = (slice(None), slice(None))


@dataclass(frozen=True)
class _Shot:
    """Properties that all layers of a scene share."""

    times: Array
    """(T,) times of the frames, in frames of the video."""
    view: tuple[int, int]
    """Height and width in pixels."""
    palette: Palette
    path: Warp
    """Of the camera, on the ground."""
    busy: float
    """0 (plain) to 1."""

    @property
    def side(self) -> int:
        return min(self.view)


def draw_scene(rng: Rng, times: Array, view: tuple[int, int]) -> Tensor:
    """(3, T, H, W) float, about 0..1. `times` are those of the frames, in frames of the video."""
    shot = _Shot(times, view, Palette.draw(rng), camera(rng, times, min(view)), rng.beta(1.1, 1.6))
    video = _draw_ground(rng, shot)
    for _ in range(int(rng.binomial(2, 0.1 + 0.45 * shot.busy))):
        _add_layer(rng, video, shot)
    for _ in range(int(rng.poisson(0.8 + 3.5 * shot.busy))):
        _add_object(rng, video, shot)
    if rng.random() < 0.12:
        _add_caption(rng, video, shot)
    if rng.random() < 0.35:
        _light(rng, video, shot)
    if rng.random() < 0.35:
        _add_grain(rng, video, rng.lognormal(-5.2, 0.7))
    if rng.random() < 0.05:
        _add_bars(rng, video)
    return video


def _draw_ground(rng: Rng, shot: _Shot) -> Tensor:
    """The opaque layer farthest away: a surface, some larger ones (walls, floors, sky), and leaves."""
    wobble = Wobble.draw(rng, shot.side) if rng.random() < 0.1 else None
    path, (height, width) = _field(shot.path, shot.view, wobble)
    canvas = fill(rng, shot.palette, height, width)
    surfaces = int(rng.integers(0, 4))
    colours, gains = shot.palette.colours(rng, surfaces), shot.palette.gains(rng, surfaces)
    for colour, gain in zip(colours, gains, strict=True):
        top, left = rng.integers(-_LARGEST // 4, (height, width)).tolist()
        stamp(rng, canvas, pick_outline(rng, _LARGEST), top, left, colour, gain)
    leaves = int(height * width / 128**2 * (4 + 130 * shot.busy**1.5 * rng.uniform(0.3, 1)))
    scatter(rng, canvas, shot.palette, leaves, largest=shot.side, steepness=rng.uniform(0.1, 1.3))
    if rng.random() < 0.12:
        canvas = blur(canvas, int(rng.integers(1, 4)))
    video = sample(_expose(rng, canvas, path)[:3], path, shot.times, _ALL, shot.view, wobble)
    return video if video.shape[1] == len(shot.times) else video.repeat(1, len(shot.times), 1, 1)


def _add_layer(rng: Rng, video: Tensor, shot: _Shot) -> None:
    """Leaves nearer than the ground, which pass faster than it does (parallax)."""
    wobble = Wobble.draw(rng, shot.side) if rng.random() < 0.25 else None
    path, (height, width) = _field(shot.path.moved(rng.uniform(1.1, 2.2)), shot.view, wobble)
    canvas = np.zeros((4, height, width), np.float32)
    leaves = max(1, int(height * width / 128**2 * rng.uniform(1, 3 + 12 * shot.busy)))
    scatter(rng, canvas, shot.palette, leaves, largest=shot.side, steepness=rng.uniform(0, 1.2))
    if rng.random() < 0.3:
        canvas = blur(canvas, int(rng.integers(1, 5)))
    if rng.random() < 0.2:  # smoke, glass, a reflection
        canvas *= np.float32(rng.uniform(0.2, 0.7))
    _lay(video, sample(_expose(rng, canvas, path), path, shot.times, _ALL, shot.view, wobble))


def _add_object(rng: Rng, video: Tensor, shot: _Shot) -> None:
    """An object with parts, moving or at rest."""
    size = int(rng.choice([side for side in OUTLINE_SIZES if 16 <= side <= max(16, shot.side)]))
    canvas = draw_object(rng, shot.palette, size, parts=int(rng.integers(0, 4 + int(14 * shot.busy))))
    own = own_motion(rng, shot.times, shot.side, min(rng.lognormal(-0.1, 0.9), 10) * shot.side / 128)
    moves = rng.random() < 0.75
    wobble = Wobble.draw(rng, size) if moves and rng.random() < 0.3 else None
    warp = (own if moves else own.stopped()).inverse().after(shot.path)
    reach = warp.inverse().corners(*canvas.shape[1:]) + np.array(shot.view[::-1]) / 2
    margin = 2 * wobble.size if wobble else 0
    low, high = (reach.min((0, 1)) - margin).astype(int), (reach.max((0, 1)) + margin + 1).astype(int)
    (left, top), (right, bottom) = np.maximum(low, 0).tolist(), np.minimum(high, shot.view[::-1]).tolist()
    if top < bottom and left < right:
        area = slice(top, bottom), slice(left, right)
        _lay(video[:, :, *area], sample(_expose(rng, canvas, warp), warp, shot.times, area, shot.view, wobble))


def _add_caption(rng: Rng, video: Tensor, shot: _Shot) -> None:
    """Writing, a logo or a frame that stays on the screen."""
    canvas = np.zeros((4, *shot.view), np.float32)
    palette = Palette(np.full(3, 0.5), contrast=0.5, vividness=0.3, roughness=0.005)
    scatter(rng, canvas, palette, int(rng.integers(1, 4)), largest=shot.side, steepness=0)
    _lay(video, torch.from_numpy(canvas)[:, None])


def _add_bars(rng: Rng, video: Tensor) -> None:
    """Edges of one colour, above and below or at the sides."""
    axis, colour = int(rng.integers(2, 4)), float(rng.random() < 0.25)
    width = round(rng.uniform(0.05, 0.25) * video.shape[axis])
    video.narrow(axis, 0, width).fill_(colour)
    video.narrow(axis, video.shape[axis] - width, width).fill_(colour)


def _field(path: Warp, view: tuple[int, int], wobble: Wobble | None) -> tuple[Warp, tuple[int, int]]:
    """A path about the middle of the canvas that it needs, and the height and width of this."""
    seen = path.corners(*view).reshape(-1, 2)
    low, high = seen.min(0), seen.max(0)
    width, height = np.ceil(high - low + 4 + (2 * wobble.size if wobble else 0)).astype(int).tolist()
    return Warp(path.matrix, path.offset - (low + high) / 2), (height, width)


def _expose(rng: Rng, canvas: Array, path: Warp) -> Array:
    """Motion blur by the mean speed along a path and the time that a shutter is open."""
    if path.still or rng.random() < 0.4:
        return canvas
    dx, dy = rng.uniform(0.2, 0.8) * np.diff(path.offset, axis=0).mean(0)
    return smear(canvas, float(dx), float(dy))


def _lay(video: Tensor, layer: Tensor) -> None:
    """A (4, T or 1, h, w) layer over a (3, T, h, w) view of the video; its colours are multiplied by its alpha."""
    video.mul_(1 - layer[3:]).add_(layer[:3])


def _light(rng: Rng, video: Tensor, shot: _Shot) -> None:
    """Light that is stronger on one side, changes, flickers, or is cut by a shadow that moves."""
    times, (rows, columns) = shot.times, (max(2, side // 8) for side in shot.view)
    y, x = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None]
    angle, slope = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.25)
    drift = travel(rng, times, rng.normal(0, 0.01) if rng.random() < 0.5 else 0.0)
    light = 1 + slope * (np.cos(angle) * x + np.sin(angle) * y) + np.clip(drift, -0.4, 0.4)[:, None, None]
    if rng.random() < 0.15:
        light = light * np.exp(rng.normal(0, 0.04, (len(times), 1, 1)))
    if rng.random() < 0.4:
        light = light * (1 - rng.uniform(0.2, 0.7) * _shadow(rng, times, rows, columns))
    field = torch.from_numpy(light.astype(np.float32)).expand(len(times), rows, columns)
    video.mul_(F.interpolate(field[None], shot.view, mode="bilinear", align_corners=True))


def _shadow(rng: Rng, times: Array, rows: int, columns: int) -> Array:
    """(T or 1, rows, columns) in 0..1: a coarse outline that moves over the view."""
    outline = np.pad(pick_outline(rng, 64), 2)[None]
    enlarge = Warp(turning(0 * times, np.full(len(times), 64 / rows / rng.uniform(0.5, 2))), np.zeros((len(times), 2)))
    path = enlarge.after(own_motion(rng, times, rows, rng.lognormal(-2.5, 1.0)).inverse())
    shadow: Array = sample(outline, path, times, _ALL, (rows, columns), None)[0].numpy()
    return shadow


def _add_grain(rng: Rng, video: Tensor, strength: float) -> None:
    """Noise of the sensor, new in every frame."""
    grain = bank().grain
    for frame in range(video.shape[1]):
        places = np.arange(video[0, 0].numel()) + rng.integers(len(grain))
        noise = np.take(grain, places, mode="wrap") * np.float32(strength)
        video[:, frame].add_(torch.from_numpy(noise).view(video.shape[2:]))
