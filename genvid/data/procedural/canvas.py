"""Painting: dead leaves of power-law sizes (Lee, Mumford and Huang 2001) with textures, shading and shadows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genvid.data.procedural.bank import OUTLINE_SIZES, SIDE, bank
from genvid.data.procedural.outlines import Array, Rng


@dataclass(frozen=True)
class Palette:
    """Colours of a scene: a mean colour, and how far those of its parts are from it."""

    mean: Array
    """(3,) in 0..1."""
    contrast: float
    """Deviation of the luminance."""
    vividness: float
    """Deviation of the chroma as a share of `contrast`."""
    roughness: float
    """Typical deviation of a texture about the colour of its part."""

    @classmethod
    def draw(cls, rng: Rng) -> Palette:
        mean = np.clip(rng.normal(0.46, 0.09), 0.15, 0.85) + _chroma(rng, 1, 0.045)[0]
        return cls(mean, rng.uniform(0.16, 0.36), rng.lognormal(-1.5, 0.6), rng.lognormal(-3.0, 0.6))

    def colours(self, rng: Rng, count: int) -> Array:
        """(count, 4) with an alpha of 1."""
        light = rng.uniform(-1.75, 1.75, (count, 1)) * self.contrast
        vivid = np.where(rng.random((count, 1)) < 0.08, 3, 1) * self.vividness * self.contrast
        colour = self.mean + light + vivid * _chroma(rng, count, 1.0)
        return np.concatenate([colour.clip(0.01, 1), np.ones((count, 1))], 1).astype(np.float32)

    def gains(self, rng: Rng, count: int) -> Array:
        """(count, 4) deviations of textures; that of alpha is 0. A few parts are far rougher than the rest."""
        gain = self.roughness * rng.lognormal(0, 0.8, (count, 1))
        gains: Array = (np.minimum(gain, 0.25) * [1, 1, 1, 0]).astype(np.float32)
        return gains


def _chroma(rng: Rng, count: int, scale: float) -> Array:
    """(count, 3) without luminance: blue to yellow varies more than green to magenta."""
    warm, green = rng.normal(0, scale, (2, count, 1))
    chroma: Array = warm * np.array([1, 0.05, -1.05]) + 0.35 * green * np.array([0.5, -1, 0.5])
    return chroma


def fill(rng: Rng, palette: Palette, height: int, width: int) -> Array:
    """(4, height, width) of one textured surface, opaque."""
    canvas = _cut(bank().textures[rng.integers(len(bank().textures))], rng, height, width)
    canvas *= np.float32(1.4) * palette.gains(rng, 1)[0][:, None, None]
    canvas += palette.colours(rng, 1)[0][:, None, None]
    return canvas


def scatter(rng: Rng, canvas: Array, palette: Palette, count: int, *, largest: int, steepness: float) -> None:
    """Paint `count` leaves over a (4, H, W) canvas with premultiplied alpha: their density falls as size **
    -steepness, and the larger tend to lie below the smaller."""
    height, width = canvas.shape[1:]
    sides = np.array([s for s in OUTLINE_SIZES if s <= max(largest, OUTLINE_SIZES[0])])
    shares = sides.astype(np.float64) ** -steepness
    drawn = rng.choice(sides, count, p=shares / shares.sum())
    drawn = drawn[np.argsort(rng.normal(0, 1.0, count) - np.log(drawn), kind="stable")]
    tops, lefts = (_places(rng, count, length) - drawn // 2 for length in (height, width))
    colours, gains = palette.colours(rng, count), palette.gains(rng, count)
    shadowed = rng.random(count) < 0.25
    for i, side in enumerate(drawn.tolist()):
        top, left, outline = int(tops[i]), int(lefts[i]), pick_outline(rng, side)
        if shadowed[i] and side >= 24:
            off = max(1, side // 16)
            shade(canvas, outline, top + off, left + off, 0.35)
        stamp(rng, canvas, outline, top, left, colours[i], gains[i])


def _places(rng: Rng, count: int, length: int) -> NDArray[np.int64]:
    """(count,) middles of leaves along one axis: evenly, or in up to four heaps."""
    if rng.random() < 0.4:
        return (rng.random(count) * length).astype(int)
    heaps = rng.random(int(rng.integers(1, 5))) * length
    return (heaps[rng.integers(len(heaps), size=count)] + rng.normal(0, 0.2 * length, count)).astype(int)


def pick_outline(rng: Rng, side: int) -> Array:
    """(side, side) coverage, mirrored and turned at random."""
    number, mirror_y, mirror_x, turn = rng.integers(0, (len(bank().outlines[side]), 2, 2, 2))
    outline = bank().outlines[side][number, :: 1 - 2 * mirror_y, :: 1 - 2 * mirror_x]
    return outline.T if turn else outline


def stamp(rng: Rng, canvas: Array, outline: Array, top: int, left: int, colour: Array, gain: Array) -> None:
    """Paint one leaf; what lies outside of the canvas is lost."""
    cover, under = _overlap(canvas, outline, top, left)
    number, dy, dx = rng.integers(0, (len(bank().textures), SIDE - outline.shape[0] + 1, SIDE - outline.shape[1] + 1))
    leaf = bank().textures[number, :, dy : dy + cover.shape[0], dx : dx + cover.shape[1]] * gain[:, None, None]
    leaf += colour[:, None, None]
    leaf -= under
    leaf *= cover
    under += leaf


def shade(canvas: Array, outline: Array, top: int, left: int, depth: float) -> None:
    """Darken the colours below an outline, and leave alpha."""
    cover, under = _overlap(canvas, outline, top, left)
    under[:3] *= 1 - np.float32(depth) * cover


def _overlap(canvas: Array, outline: Array, top: int, left: int) -> tuple[Array, Array]:
    """The part of an outline at (top, left) that is on the canvas, and the canvas under it."""
    (y, bottom), (x, right) = (
        np.clip([start, start + side], 0, limit).tolist()
        for start, side, limit in zip((top, left), outline.shape, canvas.shape[1:], strict=True)
    )
    return outline[y - top : bottom - top, x - left : right - left], canvas[:, y:bottom, x:right]


def _cut(texture: Array, rng: Rng, height: int, width: int) -> Array:
    """A (4, height, width) copy of some part of a texture, mirrored beyond its edges."""
    down, across = rng.integers(0, SIDE, 2)
    rows, columns = np.arange(down, down + height), np.arange(across, across + width)
    rows, columns = (np.where(n // SIDE % 2, SIDE - 1 - n % SIDE, n % SIDE) for n in (rows, columns))
    return np.take(np.take(texture, rows, 1), columns, 2)


def blur(canvas: Array, radius: int) -> Array:
    """Defocus of a (4, H, W) canvas: a box of 2 * radius + 1 pixels, twice."""
    for _ in range(2):
        for axis in (1, 2):
            canvas = _box_mean(canvas, radius, axis)
    return canvas


def _box_mean(canvas: Array, radius: int, axis: int) -> Array:
    pad = [(0, 0)] * 3
    pad[axis] = (radius + 1, radius)
    total = np.pad(canvas, pad, mode="edge").cumsum(axis, dtype=np.float32)
    size = 2 * radius + 1
    ends, starts = (np.take(total, np.arange(first, first + canvas.shape[axis]), axis) for first in (size, 0))
    mean: Array = (ends - starts) / np.float32(size)
    return mean


def smear(canvas: Array, dx: float, dy: float) -> Array:
    """Motion blur of a (4, H, W) canvas along (dx, dy) pixels."""
    taps = int(min(12, max(abs(dx), abs(dy)))) + 1
    if taps < 2:
        return canvas
    total = np.zeros_like(canvas)
    for share in np.linspace(-0.5, 0.5, taps):
        total += shift(canvas, round(dy * share), round(dx * share))
    total /= taps
    return total


def shift(canvas: Array, down: int, across: int) -> Array:
    """The canvas moved by whole pixels, its edge repeated."""
    rows = np.clip(np.arange(canvas.shape[1]) - down, 0, canvas.shape[1] - 1)
    columns = np.clip(np.arange(canvas.shape[2]) - across, 0, canvas.shape[2] - 1)
    return np.take(np.take(canvas, rows, 1), columns, 2)
