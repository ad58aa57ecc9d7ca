"""Distortion curves: what a block loses at each candidate size, and what each further slice of tokens gains.

Shapes: (..., K) curves over K ascending candidate sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def running_minimum(curves: Tensor) -> Tensor:
    """Predicted (..., K) curves -> float64 curves that never rise.

    More tokens cannot truly hurt (a decoder may ignore them), so a predicted rise is noise: a size counts as at
    least as good as every smaller one. This is the one way curves are made monotone here.
    """
    return curves.double().cummin(-1).values


def hull_slopes(curves: Tensor, sizes: Tensor) -> Tensor:
    """Slopes of the lower convex hull of each curve, as (..., K - 1) distortion per token over the step k -> k + 1.

    They never fall along K, and steps below one edge of the hull carry exactly the same number. An infinite entry
    of a curve forbids that size: steps that must be taken to reach an allowed size are -inf, steps beyond the last
    allowed size +inf. By the min-max formula for convex minorants: step j has slope
    max over a <= j of min over b > j of (curve[b] - curve[a]) / (sizes[b] - sizes[a]).
    """
    curves, sizes = curves.double(), sizes.double()
    spans = sizes - sizes[:, None]
    shallowest = torch.full_like(curves, torch.inf)  # from each a, over the b seen so far: those beyond the step
    slopes = torch.empty_like(curves[..., 1:])
    for b in range(curves.shape[-1] - 1, 0, -1):
        chords = (curves[..., b, None] - curves[..., :b]) / spans[:b, b]
        # fmin passes over the NaN of inf - inf, where both ends are forbidden.
        shallowest = torch.fmin(shallowest[..., :b], chords)
        slopes[..., b - 1] = shallowest.amax(-1)
    return slopes


def gains(curves: Tensor, sizes: Tensor) -> Tensor:
    """What the tokens of each step of the hull gain, in distortion per token: (..., K - 1), never rising along K."""
    return -hull_slopes(curves, sizes)
