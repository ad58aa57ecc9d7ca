"""How much rate one method saves against another at equal quality (Bjontegaard delta rate, VCEG-M33)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def bd_rate(
    anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]], *, lower_is_better: bool = False
) -> float:
    """Percent of rate that `test` needs more (positive) or less (negative) than `anchor`, on average over the quality
    that both reach. Points are (rate > 0, quality), at least two, in any order.

    Log rate as a function of quality is interpolated by monotone cubics, as JCT-VC's later tools do; the original fits
    one polynomial, which oscillates on few points. ValueError when the curves share no quality.
    """
    curves = [_curve(points, -1.0 if lower_is_better else 1.0) for points in (anchor, test)]
    low, high = max(curve[0][0] for curve in curves), min(curve[0][-1] for curve in curves)
    if not low < high:
        raise ValueError("the two curves have no quality in common: there is nothing to compare")
    places = np.linspace(low, high, 2001)
    first, second = (_interpolate(x, y, places) for x, y in curves)
    return 100 * math.expm1(float(np.trapezoid(second - first, places)) / (high - low))


def _curve(points: Sequence[tuple[float, float]], sign: float) -> tuple[Floats, Floats]:
    """Ascending quality and log rate."""
    rates, qualities = np.array(sorted(points), dtype=np.float64).T
    qualities = sign * qualities
    if len(points) < 2 or (rates <= 0).any() or (np.diff(qualities) <= 0).any():
        raise ValueError(
            f"a rate-distortion curve needs two points or more, each better than the cheaper one: {points}"
        )
    return qualities, np.log(rates)


def _interpolate(x: Floats, y: Floats, places: Floats) -> Floats:
    """Monotone piecewise cubic through the points (Fritsch and Butland 1984)."""
    steps, slopes = np.diff(x), np.diff(y) / np.diff(x)
    tangents = np.empty_like(y)
    if len(x) == 2:
        tangents[:] = slopes[0]
    else:
        before, after = 2 * steps[1:] + steps[:-1], steps[1:] + 2 * steps[:-1]
        with np.errstate(divide="ignore"):
            harmonic = (before + after) / (before / slopes[:-1] + after / slopes[1:])
        tangents[1:-1] = np.where(slopes[:-1] * slopes[1:] > 0, harmonic, 0.0)
        tangents[0] = _end(steps[0], steps[1], slopes[0], slopes[1])
        tangents[-1] = _end(steps[-1], steps[-2], slopes[-1], slopes[-2])
    piece = np.clip(np.searchsorted(x, places, side="right") - 1, 0, len(steps) - 1)
    width, t = steps[piece], (places - x[piece]) / steps[piece]
    left, right = y[piece], y[piece + 1]
    bend = width * ((1 - t) * tangents[piece] - t * tangents[piece + 1])
    straight = (1 - t) * left + t * right
    return straight + t * (1 - t) * (bend + (2 * t - 1) * (right - left))


def _end(step: float, other: float, slope: float, next_slope: float) -> float:
    """Tangent at an end, from three points, kept monotone."""
    tangent = ((2 * step + other) * slope - step * next_slope) / (step + other)
    if tangent * slope <= 0:
        return 0.0
    return 3 * slope if slope * next_slope <= 0 and abs(tangent) > 3 * abs(slope) else tangent
