"""Textures, outlines and grain of all scenes, made once in a process from a fixed seed."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from genvid.data.sources.procedural.outlines import Array, Rng, draw_outlines

SIDE = 256
"""Height and width of a texture in pixels."""
OUTLINE_SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Sides in pixels at which outlines are stored: half octaves."""
_TEXTURES = 28
_OUTLINES = 56
_GRAIN = 2**19
_SEED = 20_260
_LUMA = np.array([1, 1, 1], np.float32)
_RED_BLUE = np.array([1, 0, -1], np.float32)
_GREEN = np.array([0.5, -1, 0.5], np.float32)


@dataclass(frozen=True)
class Bank:
    """Arrays shared by all scenes, read only."""

    textures: Array
    """(N, 4, SIDE, SIDE): red, green and blue of mean 0 and a luminance of deviation 1, and an alpha of 1."""
    outlines: dict[int, Array]
    """Side -> (M, side, side) coverage in 0..1."""
    ramps: dict[int, Array]
    """Side -> (side,) from -1 to 1."""
    grain: Array
    """(K,) normal numbers of mean 0 and deviation 1."""


@functools.cache
def bank() -> Bank:
    rng = np.random.default_rng(_SEED)
    outlines = {side: draw_outlines(np.random.default_rng(_SEED + 1), _OUTLINES, side) for side in OUTLINE_SIZES}
    ramps: dict[int, Array] = {side: np.linspace(-1, 1, side, dtype=np.float32) for side in OUTLINE_SIZES}
    textures = np.stack([_coloured(rng, _MAKERS[i % len(_MAKERS)](rng)) for i in range(_TEXTURES)])
    grain = rng.standard_normal(_GRAIN, dtype=np.float32)
    return Bank(textures, outlines, ramps, grain)


def spectral_noise(rng: Rng, slope: float, stretch: float = 1.0, angle: float = 0.0) -> Array:
    """(SIDE, SIDE) periodic noise whose amplitude falls as frequency ** -slope, its grain longer along `angle`."""
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    along, across = np.cos(angle) * fx + np.sin(angle) * fy, np.cos(angle) * fy - np.sin(angle) * fx
    frequency = np.hypot(along * stretch, across / stretch)
    frequency[0, 0] = np.inf
    phases = np.exp(2j * np.pi * rng.random(frequency.shape))
    return _normalised(np.fft.irfft2(phases * frequency**-slope, s=(SIDE, SIDE)))


def _normalised(field: Array) -> Array:
    """Mean 0, deviation 1, outliers cut at 3."""
    even: Array = np.clip((field - field.mean()) / (field.std() + 1e-6), -3, 3).astype(np.float32)
    return even


def _coloured(rng: Rng, luminance: Array) -> Array:
    """(SIDE, SIDE) -> (4, SIDE, SIDE). Hue varies with luminance and slowly over the surface, both weakly, as the
    principal axes of natural colours do: luminance, blue to yellow, green to magenta in the ratio 1 : 1/4 : 1/9."""
    slow = spectral_noise(rng, 1.5)
    mix = rng.normal(0, 0.15, 4)
    red_blue, green = mix[0] * luminance + 1.4 * mix[1] * slow, 0.4 * (mix[2] * luminance + mix[3] * slow)
    colour = np.stack([_LUMA[c] * luminance + _RED_BLUE[c] * red_blue + _GREEN[c] * green for c in range(3)])
    return np.concatenate([colour, np.ones((1, SIDE, SIDE), np.float32)]).astype(np.float32)


def _rough(rng: Rng) -> Array:
    """Stone, cloth, foliage at a distance: noise near 1/f."""
    return spectral_noise(rng, rng.uniform(0.8, 1.4))


def _soft(rng: Rng) -> Array:
    """Shading with a trace of texture."""
    return 2.5 * spectral_noise(rng, rng.uniform(1.8, 2.8)) + rng.uniform(0.1, 0.5) * spectral_noise(rng, 1.0)


def _brushed(rng: Rng) -> Array:
    """Wood, grass, hair, water: noise with a direction."""
    return spectral_noise(rng, rng.uniform(1.0, 1.5), rng.uniform(1.5, 4.0), rng.uniform(0, np.pi))


def _patched(rng: Rng) -> Array:
    """Spots and veins: noise of two tones with shading."""
    field, width = spectral_noise(rng, rng.uniform(1.2, 1.8)), rng.uniform(0.05, 0.3)
    veins = np.abs(field) if rng.random() < 0.4 else field + rng.uniform(-1, 0.5)
    return _normalised(np.tanh(veins / width) + 0.2 * _soft(rng))


def _ruled(rng: Rng) -> Array:
    """Stripes, boards and checks, bent a little."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    angle, waves = rng.uniform(0, np.pi), rng.uniform(4, 28)
    bend = rng.uniform(0, 0.3) * spectral_noise(rng, 2.2)
    wave = np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y) + bend)
    if rng.random() < 0.5:
        wave = wave * np.sin(2 * np.pi * waves * rng.uniform(0.5, 1) * (np.cos(angle) * y - np.sin(angle) * x) + bend)
    edges = np.tanh((wave - rng.uniform(-0.9, 0.9)) * rng.uniform(1, 8))
    return _normalised(edges + rng.uniform(0.1, 0.4) * _soft(rng))


def _littered(rng: Rng) -> Array:
    """Pebbles, leaves, crowds: many small shapes over one another, of power-law sizes."""
    field = 0.2 * _soft(rng)
    sides = np.array([12, 16, 24, 32, 48])
    shares = sides.astype(np.float64) ** -rng.uniform(1.2, 2.2)
    stamps = {int(side): draw_outlines(rng, 12, int(side)) for side in sides}
    for side in rng.choice(sides, 700, p=shares / shares.sum()):
        top, left = rng.integers(0, SIDE - side, 2)
        under = field[top : top + side, left : left + side]
        shade = rng.normal() + rng.uniform(-0.5, 0.5) * np.linspace(-1, 1, side, dtype=np.float32)[:, None]
        under += stamps[int(side)][rng.integers(12)] * (shade - under)
    return _normalised(field)


_MAKERS = (_soft, _rough, _soft, _brushed, _patched, _littered, _ruled)
