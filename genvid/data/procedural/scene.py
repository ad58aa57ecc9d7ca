"""A scene without cuts: a ground, layers before it, things that move, light, and the grain of the sensor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genvid.data.procedural.bank import OUTLINE_SIZES, bank
from genvid.data.procedural.canvas import Palette, blur, fill, pick_outline, scatter, smear, stamp
from genvid.data.procedural.motion import Warp, Wobble, camera, own_motion, sample, travel, turning
from genvid.data.procedural.outlines import Array, Rng


def draw_scene(rng: Rng, times: Array, view: tuple[int, int]) -> Tensor:
    """(3, T, H, W) float, about 0..1. `times` are those of the frames, in frames of the video."""
    side, busy = min(view), rng.beta(1.1, 1.6)
    palette, path = Palette.draw(rng), camera(rng, times, side)
    video = _ground(rng, times, view, palette, path, busy)
    for _ in range(int(rng.binomial(2, 0.1 + 0.45 * busy))):
        _layer(rng, video, times, view, palette, path, busy)
    for _ in range(int(rng.poisson(0.8 + 3.5 * busy))):
        _thing(rng, video, times, view, palette, path, busy)
    if rng.random() < 0.12:
        _caption(rng, video, view)
    if rng.random() < 0.35:
        _light(rng, video, times, view)
    if rng.random() < 0.35:
        _grain(rng, video, rng.lognormal(-5.2, 0.7))
    return video


def _ground(rng: Rng, times: Array, view: tuple[int, int], palette: Palette, path: Warp, busy: float) -> Tensor:
    """The opaque layer farthest away."""
    wobble = Wobble.draw(rng, min(view)) if rng.random() < 0.1 else None
    path, (height, width) = _field(path, view, wobble)
    canvas = fill(rng, palette, height, width)
    area = height * width / (128 * 128)
    for _ in range(int(rng.integers(0, 4))):  # walls, floors, sky
        top, left = rng.integers(-64, (height, width))
        stamp(
            rng,
            canvas,
            pick_outline(rng, 256),
            int(top),
            int(left),
            palette.colours(rng, 1)[0],
            palette.gains(rng, 1)[0],
        )
    leaves = int(area * (4 + 130 * busy**1.5 * rng.uniform(0.3, 1)))
    scatter(rng, canvas, palette, leaves, largest=min(view), steepness=rng.uniform(0.1, 1.3))
    if rng.random() < 0.12:
        canvas = blur(canvas, int(rng.integers(1, 4)))
    canvas = _shutter(rng, canvas, path)
    video = sample(canvas[:3], path, times, (slice(None), slice(None)), view, wobble)
    return video if video.shape[1] == len(times) else video.repeat(1, len(times), 1, 1)


def _layer(
    rng: Rng, video: Tensor, times: Array, view: tuple[int, int], palette: Palette, path: Warp, busy: float
) -> None:
    """Leaves nearer than the ground, which pass faster than it does (parallax)."""
    wobble = Wobble.draw(rng, min(view)) if rng.random() < 0.25 else None
    near, (height, width) = _field(path.moved(rng.uniform(1.1, 2.2)), view, wobble)
    canvas = np.zeros((4, height, width), np.float32)
    leaves = max(1, int(height * width / (128 * 128) * rng.uniform(1, 3 + 12 * busy)))
    scatter(rng, canvas, palette, leaves, largest=min(view), steepness=rng.uniform(0, 1.2))
    if rng.random() < 0.3:
        canvas = blur(canvas, int(rng.integers(1, 5)))
    _lay(video, sample(_shutter(rng, canvas, near), near, times, (slice(None), slice(None)), view, wobble))


def _thing(
    rng: Rng, video: Tensor, times: Array, view: tuple[int, int], palette: Palette, path: Warp, busy: float
) -> None:
    """One thing with parts, that moves by itself."""
    side = min(view)
    sides = [s for s in OUTLINE_SIZES if 16 <= s <= max(16, side)]
    size = int(rng.choice(sides))
    margin = 4
    canvas = np.zeros((4, size + 2 * margin, size + 2 * margin), np.float32)
    body = pick_outline(rng, size)
    stamp(rng, canvas, body, margin, margin, palette.colours(rng, 1)[0], palette.gains(rng, 1)[0])
    parts = int(rng.integers(0, 4 + int(14 * busy)))
    if parts:
        detail = canvas.copy()
        scatter(rng, detail, palette, parts, largest=size // 2, steepness=0.5)
        held = canvas[3] if rng.random() < 0.7 else detail[3]
        canvas = detail * (held / np.maximum(detail[3], 1e-3))
    moves = rng.random() < 0.75
    own = own_motion(rng, times, side, min(rng.lognormal(-0.1, 0.9), 10) * side / 128 if moves else 0.0)
    if not moves:
        own = Warp(np.repeat(own.matrix[:1], len(times), 0), np.repeat(own.offset[:1], len(times), 0))
    warp = own.inverse().after(path)
    reach = warp.inverse().corners(*canvas.shape[1:])
    middle = np.array([view[1], view[0]]) / 2
    low, high = np.floor(reach.min((0, 1)) + middle).astype(int), np.ceil(reach.max((0, 1)) + middle).astype(int)
    area = slice(max(low[1], 0), min(high[1], view[0])), slice(max(low[0], 0), min(high[0], view[1]))
    if area[0].stop <= area[0].start or area[1].stop <= area[1].start:
        return
    wobble = Wobble.draw(rng, size) if moves and rng.random() < 0.3 else None
    _lay(video[:, :, area[0], area[1]], sample(_shutter(rng, canvas, warp), warp, times, area, view, wobble))


def _caption(rng: Rng, video: Tensor, view: tuple[int, int]) -> None:
    """Writing, a logo or a frame that stays on the screen."""
    canvas = np.zeros((4, *view), np.float32)
    palette = Palette(np.full(3, 0.5), 0.5, 0.3, 0.005)
    scatter(rng, canvas, palette, int(rng.integers(1, 4)), largest=min(view), steepness=0)
    _lay(video, torch.from_numpy(canvas)[:, None])


def _field(path: Warp, view: tuple[int, int], wobble: Wobble | None) -> tuple[Warp, tuple[int, int]]:
    """A path about the middle of the canvas that it needs, and the height and width of this."""
    seen = path.corners(*view).reshape(-1, 2)
    low, high = seen.min(0), seen.max(0)
    margin = 4 + (2 * wobble.size if wobble else 0)
    width, height = np.ceil(high - low + margin).astype(int)
    return Warp(path.matrix, path.offset - (low + high) / 2), (int(height), int(width))


def _shutter(rng: Rng, canvas: Array, path: Warp) -> Array:
    """Motion blur by the mean speed along a path."""
    if path.still or len(path.offset) < 2 or rng.random() < 0.4:
        return canvas
    dx, dy = rng.uniform(0.2, 0.8) * np.diff(path.offset, axis=0).mean(0)
    return smear(canvas, float(dx), float(dy))


def _lay(video: Tensor, layer: Tensor) -> None:
    """A (4, T or 1, h, w) layer over a (3, T, h, w) view of the video; its colours are multiplied by its alpha."""
    video.mul_(1 - layer[3:]).add_(layer[:3])


def _light(rng: Rng, video: Tensor, times: Array, view: tuple[int, int]) -> None:
    """Light that is stronger on one side, changes, flickers, or is cut by a shadow that moves."""
    rows, columns = max(2, view[0] // 8), max(2, view[1] // 8)
    y, x = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None]
    angle, drift = rng.uniform(0, 2 * np.pi), travel(rng, times, rng.normal(0, 0.01))
    slope = rng.normal(0, 0.25)
    light = 1 + slope * (np.cos(angle) * x + np.sin(angle) * y) + np.clip(drift, -0.4, 0.4)[:, None, None]
    if rng.random() < 0.15:
        light = light * np.exp(rng.normal(0, 0.04, (len(times), 1, 1)))
    if rng.random() < 0.4:
        warp = own_motion(rng, times, rows, rng.lognormal(-2.5, 1.0))
        zoom = Warp(turning(0 * times, np.full(len(times), 64 / rows / rng.uniform(0.5, 2))), np.zeros((len(times), 2)))
        shadow = np.pad(pick_outline(rng, 64), 2)[None]
        whole = slice(None), slice(None)
        cast = sample(np.ascontiguousarray(shadow), zoom.after(warp.inverse()), times, whole, (rows, columns), None)
        light = light * (1 - rng.uniform(0.2, 0.7) * cast[0].numpy())
    field = torch.from_numpy(light.astype(np.float32)).expand(len(times), rows, columns)
    video.mul_(F.interpolate(field[None], view, mode="bilinear", align_corners=True))


def _grain(rng: Rng, video: Tensor, strength: float) -> None:
    """Noise of the sensor, new in every frame."""
    for frame in range(video.shape[1]):
        noise = bank().grain_like(int(rng.integers(2**19)), video[0, 0].numel()) * np.float32(strength)
        video[:, frame].add_(torch.from_numpy(noise).view(video.shape[2:]))
