"""Outlines of objects, as coverage of square pixels: most convex and hard, some soft, some thin, some are writing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

Array = NDArray[np.floating[Any]]
"""Real numbers of any precision."""
Rng = np.random.Generator


def draw_outlines(rng: Rng, count: int, side: int) -> Array:
    """(count, side, side) coverage in 0..1. One generator state gives the same forms at every size."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    seeds = rng.integers(0, 2**32, count)
    return np.stack([_draw(np.random.default_rng(s), i, axis) for i, s in enumerate(seeds)])


def _draw(rng: Rng, number: int, axis: Array) -> Array:
    """One outline on the square [-1, 1] x [-1, 1]."""
    if number % 14 == 13:
        return _writing(rng, len(axis))
    angle, tilt = rng.uniform(0, 2 * np.pi), number % 2 == 0
    softness = rng.uniform(0.1, 0.5) if rng.random() < 0.12 else 0.0
    y, x = axis[:, None], axis[None]
    if tilt:
        x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    distance = _FORMS[number % len(_FORMS)](rng, x, y)
    fade = max(softness, 2.0 / len(axis))  # an edge of one pixel
    coverage = np.clip(0.5 - distance / fade, 0, 1)
    border = np.clip((1 - np.maximum(np.abs(axis[:, None]), np.abs(axis[None]))) / fade, 0, 1)
    outline: Array = np.minimum(coverage, border).astype(np.float32)
    return outline


def _ellipse(rng: Rng, x: Array, y: Array) -> Array:
    wide, high = rng.uniform(0.6, 0.95), rng.uniform(0.25, 0.95)
    distance: Array = (np.hypot(x / wide, y / high) - 1) * min(wide, high)
    return distance


def _box(rng: Rng, x: Array, y: Array) -> Array:
    wide, high, corner = rng.uniform(0.5, 0.95), rng.uniform(0.2, 0.95), rng.uniform(0, 0.2)
    out_x, out_y = np.abs(x) - wide + corner, np.abs(y) - high + corner
    inside = np.minimum(np.maximum(out_x, out_y), 0)
    distance: Array = np.hypot(np.maximum(out_x, 0), np.maximum(out_y, 0)) + inside - corner
    return distance


def _polygon(rng: Rng, x: Array, y: Array) -> Array:
    corners = int(rng.integers(3, 8))
    turns = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) / corners
    sides = [np.cos(t) * x + np.sin(t) * y - r for t, r in zip(turns, rng.uniform(0.4, 0.85, corners), strict=True)]
    distance: Array = np.maximum.reduce(sides)
    return distance


def _blob(rng: Rng, x: Array, y: Array) -> Array:
    """A body with limbs: the radius varies with the angle."""
    angle, distance = np.arctan2(y, x), np.hypot(x, y) - 0.6
    for harmonic in range(2, 7):
        distance -= rng.normal(0, 0.22 / harmonic) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    return distance


def _rod(rng: Rng, x: Array, y: Array) -> Array:
    """A bar or a cable: a thin line, bent or straight."""
    bend = rng.normal(0, 0.3) if rng.random() < 0.5 else 0.0
    middle = bend * (x * x - 0.4) + rng.uniform(0, 0.2) * np.sin(rng.uniform(2, 6) * x)
    distance: Array = np.maximum(np.abs(y - middle) - rng.uniform(0.02, 0.15), np.abs(x) - 0.95)
    return distance


def _frame(rng: Rng, x: Array, y: Array) -> Array:
    """A ring, a window, a rim."""
    outline = _ellipse(rng, x, y) if rng.random() < 0.5 else _box(rng, x, y)
    width = rng.uniform(0.03, 0.15)
    distance: Array = np.abs(outline + width) - width
    return distance


def _grille(rng: Rng, x: Array, y: Array) -> Array:
    """Fences, fingers, shelves: bars of one width."""
    bars, share = rng.uniform(2, 7), rng.uniform(0.2, 0.7)
    stripes = (np.abs((x * bars) % 1 - 0.5) - share / 2) / bars
    distance: Array = np.maximum(stripes, _box(rng, x, y))
    return distance


def _tree(rng: Rng, x: Array, y: Array) -> Array:
    """Arms and branches: thick lines that meet."""
    at, distance = rng.uniform(-0.3, 0.3, 2), np.full(np.broadcast_shapes(x.shape, y.shape), 9.0)
    for width in np.geomspace(rng.uniform(0.1, 0.2), 0.04, 6):
        to = np.clip(at + rng.normal(0, 0.5, 2), -0.9, 0.9)
        way = to - at
        share = np.clip(((x - at[0]) * way[0] + (y - at[1]) * way[1]) / (way @ way), 0, 1)
        distance = np.minimum(distance, np.hypot(x - at[0] - share * way[0], y - at[1] - share * way[1]) - width)
        at = at + rng.uniform(0.3, 1) * way
    return distance


def _writing(rng: Rng, side: int) -> Array:
    """Rows of letters: random strokes on cells of 5 x 4, words apart."""
    rows, letters = int(rng.integers(1, 5)), int(rng.integers(4, 12))
    glyphs = rng.random((rows, letters, 5, 3)) < 0.62
    glyphs[:, :, :, 0] |= rng.random((rows, letters, 1)) < 0.5
    glyphs[rng.random((rows, letters)) < 0.15] = False
    cells = np.zeros((rows, letters, 7, 4), np.float32)
    cells[:, :, 1:6, :3] = glyphs
    page = cells.transpose(0, 2, 1, 3).reshape(1, 1, rows * 7, letters * 4)
    high = max(4, round(side * min(1.0, 1.6 * rows / letters)))
    line = F.interpolate(torch.from_numpy(page), (high, side), mode="bilinear", antialias=True)[0, 0].numpy()
    sheet = np.zeros((side, side), np.float32)
    top = (side - high) // 2
    sheet[top : top + high] = line
    return sheet


_FORMS: tuple[Callable[[Rng, Array, Array], Array], ...] = (
    _ellipse,
    _box,
    _polygon,
    _blob,
    _ellipse,
    _box,
    _rod,
    _polygon,
    _blob,
    _frame,
    _box,
    _grille,
    _tree,
)
"""Signed distance to the outline, negative inside, in units of half the square."""
