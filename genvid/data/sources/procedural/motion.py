"""Paths of the camera and of objects, for all frames of a scene at once, and the sampling of a canvas along them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genvid.data.sources.procedural.outlines import Array, Rng


@dataclass(frozen=True)
class Warp:
    """Affine map from a view to a canvas in every frame: (x, y) -> `matrix @ (x, y) + offset`, in pixels from their
    middles."""

    matrix: Array
    """(T, 2, 2)."""
    offset: Array
    """(T, 2)."""

    def after(self, first: Warp) -> Warp:
        """`first`, then this warp."""
        offset = np.einsum("tij,tj->ti", self.matrix, first.offset) + self.offset
        return Warp(self.matrix @ first.matrix, offset)

    def inverse(self) -> Warp:
        matrix = np.linalg.inv(self.matrix)
        return Warp(matrix, -np.einsum("tij,tj->ti", matrix, self.offset))

    def stopped(self) -> Warp:
        """The warp of the first frame in every frame."""
        return Warp(np.repeat(self.matrix[:1], len(self.matrix), 0), np.repeat(self.offset[:1], len(self.offset), 0))

    def moved(self, scale: float) -> Warp:
        """The same with `scale` times the offset: of layers that are nearer or farther than the rest."""
        return Warp(self.matrix, self.offset * scale)

    def corners(self, height: int, width: int) -> Array:
        """(T, 4, 2): positions of the corners of a centred field of this size."""
        signs = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]])
        seen: Array = (signs * np.array([width, height]) / 2) @ self.matrix.transpose(0, 2, 1) + self.offset[:, None]
        return seen

    @property
    def still(self) -> bool:
        return bool((self.matrix == self.matrix[:1]).all() and (self.offset == self.offset[:1]).all())


def turning(angle: Array, scale: Array) -> Array:
    """(T,) angles and scales -> (T, 2, 2)."""
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def travel(rng: Rng, times: Array, speed: float) -> Array:
    """(T,) distance along a path: steady, accelerated, to and fro, or resting before or after a moment."""
    phase = rng.random()
    kind = rng.integers(4)
    if kind == 0:
        pace = np.ones_like(times)
    elif kind == 1:
        pace = np.linspace(0.2, 1.8, len(times)) if phase < 0.5 else np.linspace(1.8, 0.2, len(times))
    elif kind == 2:
        pace = 1.5 * np.cos(2 * np.pi * (times / rng.uniform(8, 48) + phase))
    else:
        pace = 2 * ((times - times[0] > phase * (times[-1] - times[0])) == (rng.random() < 0.5))
    steps = np.diff(times, prepend=times[0])
    way: Array = speed * np.cumsum(pace * steps)
    return way


def tremor(rng: Rng, times: Array, size: float) -> Array:
    """(T,) shaking of a hand."""
    rates, phases = rng.uniform(0.02, 0.3, (3, 1)), rng.random((3, 1))
    shake: Array = size * np.sin(2 * np.pi * (times * rates + phases)).sum(0) / 2
    return shake


def camera(rng: Rng, times: Array, side: int) -> Warp:
    """The path of a camera above a plane. Lengths are pixels; a view of twice the `side` moves twice as far."""
    unit, ones = side / 128, np.ones_like(times)
    scale = rng.uniform(0.75, 1.25)
    kind = rng.random()
    angle0 = rng.normal(0, 0.15)
    if kind < 0.5:  # on a tripod
        return Warp(turning(angle0 * ones, scale * ones), np.zeros((len(times), 2)))
    way = rng.uniform(0, 2 * np.pi)
    if kind < 0.7:  # in a hand
        size, speed, turn, zoom = rng.lognormal(-0.3, 0.6), rng.lognormal(-1.8, 0.8), 0.0, 0.0
    else:
        size = rng.lognormal(-1, 0.7) if rng.random() < 0.4 else 0.0
        speed = min(rng.lognormal(-0.2, 0.9), 8.0)
        turn = rng.normal(0, 0.008) if rng.random() < 0.35 else 0.0
        zoom = rng.normal(0, 0.01) if rng.random() < 0.4 else 0.0
    pan = travel(rng, times, speed * unit)
    offset = np.stack([np.cos(way) * pan, np.sin(way) * pan * 0.6], -1)
    if size:
        offset = offset + np.stack([tremor(rng, times, size * unit), tremor(rng, times, size * unit)], -1)
    growth = np.clip(travel(rng, times, zoom), -0.6, 0.4)
    return Warp(turning(angle0 + travel(rng, times, turn), scale * np.exp(growth)), offset)


def own_motion(rng: Rng, times: Array, side: int, speed: float) -> Warp:
    """The path of an object about the middle of the view: its place, turn and size."""
    way, ones = rng.uniform(0, 2 * np.pi), np.ones_like(times)
    place = rng.uniform(-0.45, 0.45, 2) * side
    pan = travel(rng, times, speed)
    pan = pan - pan[rng.integers(len(pan))]  # it is at its place at some moment
    turn = travel(rng, times, rng.normal(0, 0.02)) if rng.random() < 0.5 else 0 * ones
    swing = tremor(rng, times, rng.uniform(0, 0.25)) if rng.random() < 0.3 else 0 * ones
    growth = travel(rng, times, rng.normal(0, 0.008)) if rng.random() < 0.4 else 0 * ones
    offset = place + np.stack([np.cos(way) * pan, np.sin(way) * pan], -1)
    return Warp(turning(turn + swing, np.exp(np.clip(growth, -0.5, 0.5))), offset)


@dataclass(frozen=True)
class Wobble:
    """Waves across a layer that bend it: cloth, water, bodies."""

    size: float
    """Amplitude in pixels of the view or canvas."""
    waves: Array
    """(2, 2): waves a pixel and turns a frame, of the shift across and of the shift down."""
    phases: Array
    """(2,)."""

    @classmethod
    def draw(cls, rng: Rng, side: int) -> Wobble:
        size = rng.uniform(0.3, 2.5) * side / 128
        waves = np.stack([rng.uniform(0.5, 3, 2) / side, rng.uniform(0, 0.08, 2)], -1)
        return cls(size, waves, rng.random(2))

    def shift(self, which: int, positions: Array, times: Array) -> Array:
        """(T, P) pixels at `positions` (P,)."""
        wave, turns = self.waves[which]
        moved: Array = self.size * np.sin(
            2 * np.pi * (positions[None] * wave + times[:, None] * turns + self.phases[which])
        )
        return moved


def sample(
    canvas: Array, warp: Warp, times: Array, area: tuple[slice, slice], view: tuple[int, int], wobble: Wobble | None
) -> Tensor:
    """(C, H', W') canvas, its middle at 0, -> (C, T, h, w): the `area` of a view (height, width) in every frame; T is
    1 where nothing moves. Beyond the canvas its edge is repeated."""
    if warp.still and wobble is None:
        warp, times = Warp(warp.matrix[:1], warp.offset[:1]), times[:1]
    height, width = canvas.shape[1:]
    y = np.arange(view[0])[area[0]] - (view[0] - 1) / 2
    x = np.arange(view[1])[area[1]] - (view[1] - 1) / 2
    grid = np.empty((len(times), len(y), len(x), 2), np.float32)
    for axis, size in ((0, width), (1, height)):
        across = warp.matrix[:, axis, 0, None] * x + warp.offset[:, axis, None]
        down = warp.matrix[:, axis, 1, None] * y
        if wobble is not None and axis == 0:
            down = down + wobble.shift(0, y, times)
        if wobble is not None and axis == 1:
            across = across + wobble.shift(1, x, times)
        across, down = ((2 / (size - 1) * part).astype(np.float32) for part in (across, down))
        np.add(across[:, None], down[:, :, None], out=grid[..., axis])
    flat = torch.from_numpy(grid).view(1, -1, len(x), 2)
    sampled = F.grid_sample(torch.from_numpy(canvas)[None], flat, padding_mode="border", align_corners=True)
    return sampled.view(len(canvas), len(times), len(y), len(x))
