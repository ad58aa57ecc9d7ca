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
    last = curves.shape[-1] - 1
    # Reversed, so that the minimum over b > j is a running one.
    curves, sizes = curves.double().flip(-1), sizes.double().flip(0)
    slopes = curves.new_full((*curves.shape[:-1], last), -torch.inf)
    for a in range(last, 0, -1):
        chords = (curves[..., :a] - curves[..., a, None]) / (sizes[:a] - sizes[a])
        chords.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)  # inf - inf: both forbidden
        slopes[..., :a] = torch.maximum(slopes[..., :a], chords.cummin(-1).values)
    return slopes.flip(-1)


def gains(curves: Tensor, sizes: Tensor) -> Tensor:
    """What the tokens of each step of the hull gain, in distortion per token: (..., K - 1), never rising along K."""
    return -hull_slopes(curves, sizes)
