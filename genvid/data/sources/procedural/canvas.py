"""Painting: dead leaves of power-law sizes (Lee, Mumford and Huang 2001) with textures, shading and shadows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genvid.data.sources.procedural.bank import OUTLINE_SIZES, SIDE, bank
from genvid.data.sources.procedural.outlines import Array, Rng

MARGIN = 8
"""Clear pixels around an object, for blur and sampling beyond its edge."""
_SLANT = 0.06
"""Deviation of the light that one side of a leaf has more than its middle."""


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
        mean = np.clip(rng.normal(0.46, 0.07), 0.15, 0.85) + _chroma(rng, 1, 0.045)[0]
        return cls(mean, rng.uniform(0.15, 0.34), rng.lognormal(-1.5, 0.6), rng.lognormal(-2.9, 0.6))

    def colours(self, rng: Rng, count: int) -> Array:
        """(count, 4) with an alpha of 1."""
        light = rng.uniform(-1.75, 1.75, (count, 1)) * self.contrast
        vivid = np.where(rng.random((count, 1)) < 0.08, 3, 1) * self.vividness * self.contrast
        colour = self.mean + light + vivid * _chroma(rng, count, 1.0)
        return np.concatenate([colour.clip(0.02, 0.94), np.ones((count, 1))], 1).astype(np.float32)

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


def draw_object(rng: Rng, palette: Palette, size: int, parts: int) -> Array:
    """(4, H, W) of a body of `size` pixels and its parts, most of them within its outline, on a clear margin."""
    canvas = np.zeros((4, size + 2 * MARGIN, size + 2 * MARGIN), np.float32)
    stamp(rng, canvas, pick_outline(rng, size), MARGIN, MARGIN, palette.colours(rng, 1)[0], palette.gains(rng, 1)[0])
    if not parts:
        return canvas
    body = canvas[3].copy()
    scatter(rng, canvas[:, MARGIN:-MARGIN, MARGIN:-MARGIN], palette, parts, largest=size // 2, steepness=0.5)
    if rng.random() < 0.7:
        canvas *= body / np.maximum(canvas[3], 1e-3)
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
            _cast_shadow(canvas, outline, top + side // 16, left + side // 16)
        stamp(rng, canvas, outline, top, left, colours[i], gains[i])


def _places(rng: Rng, count: int, length: int) -> NDArray[np.int64]:
    """(count,) middles of leaves along one axis: evenly, or in up to four heaps."""
    if rng.random() < 0.4:
        return (rng.random(count) * length).astype(int)
    heaps = rng.random(int(rng.integers(1, 5))) * length
    return (heaps[rng.integers(len(heaps), size=count)] + rng.normal(0, 0.2 * length, count)).astype(int)


def pick_outline(rng: Rng, side: int) -> Array:
    """(side, side) coverage, mirrored and turned at random."""
    number, way = divmod(int(rng.integers(8 * len(bank().outlines[side]))), 8)
    outline = bank().outlines[side][number, :: -1 if way & 1 else 1, :: -1 if way & 2 else 1]
    return outline.T if way & 4 else outline


def stamp(rng: Rng, canvas: Array, outline: Array, top: int, left: int, colour: Array, gain: Array) -> None:
    """Paint one leaf, clipped to the canvas."""
    cover, under = _overlap(canvas, outline, top, left)
    number, dy, dx = rng.integers(0, (len(bank().textures), SIDE - outline.shape[0] + 1, SIDE - outline.shape[1] + 1))
    leaf = bank().textures[number, :, dy : dy + cover.shape[0], dx : dx + cover.shape[1]] * gain[:, None, None]
    leaf += colour[:, None, None]
    if len(outline) >= 24:  # light falls on it from one side
        slant = rng.normal(0, _SLANT, 2).astype(np.float32)
        ramp = bank().ramps[len(outline)]
        leaf[:3] += slant[0] * ramp[: leaf.shape[1], None] + slant[1] * ramp[: leaf.shape[2]]
    leaf -= under
    leaf *= cover
    under += leaf


def _cast_shadow(canvas: Array, outline: Array, top: int, left: int) -> None:
    """Darken the colours below an outline, and leave alpha."""
    cover, under = _overlap(canvas, outline, top, left)
    under[:3] *= 1 - np.float32(0.35) * cover


def _overlap(canvas: Array, outline: Array, top: int, left: int) -> tuple[Array, Array]:
    """The part of an outline at (top, left) that is on the canvas, and the canvas under it."""
    (y, bottom), (x, right) = _span(top, len(outline), canvas.shape[1]), _span(left, len(outline), canvas.shape[2])
    return outline[y - top : bottom - top, x - left : right - left], canvas[:, y:bottom, x:right]


def _span(start: int, side: int, limit: int) -> tuple[int, int]:
    """First and last + 1 of the pixels below `limit` that `side` pixels from `start` cover."""
    first = min(max(start, 0), limit)
    return first, min(max(start + side, first), limit)


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
    """Motion blur of a (4, H, W) canvas along (dx, dy) pixels, at most 2 * MARGIN - 4 of them."""
    length = max(abs(dx), abs(dy))
    kept = min(1.0, (2 * MARGIN - 4) / max(length, 1e-6))
    taps = int(kept * length) + 1
    if taps < 2:
        return canvas
    total = np.zeros_like(canvas)
    for share in np.linspace(-kept / 2, kept / 2, taps):
        total += _shifted(canvas, round(dy * share), round(dx * share))
    total /= taps
    return total


def _shifted(canvas: Array, down: int, across: int) -> Array:
    """The canvas moved by whole pixels, its edge repeated."""
    rows = np.clip(np.arange(canvas.shape[1]) - down, 0, canvas.shape[1] - 1)
    columns = np.clip(np.arange(canvas.shape[2]) - across, 0, canvas.shape[2] - 1)
    return np.take(np.take(canvas, rows, 1), columns, 2)
