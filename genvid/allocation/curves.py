"""Distortion curves: distortion of a block at each candidate size, and gain of each further slice of tokens.

Shapes: (..., K) curves over K ascending candidate sizes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def check_curves(curves: Tensor) -> Tensor:
    """The (..., K) curves themselves; ValueError for NaN and -inf, which no rule could price."""
    if not bool((curves > -torch.inf).all()):
        raise ValueError("a distortion curve holds NaN or -inf; fix the predictor (only +inf is allowed: no such size)")
    return curves


def running_minimum(curves: Tensor) -> Tensor:
    """Predicted (..., K) curves -> float64 curves that never rise from one allowed size to the next.

    More tokens cannot truly hurt (a decoder may ignore them), so a predicted rise is noise: a size counts as at
    least as good as every smaller one. This is the one way curves are made monotone here. +inf forbids a size, and
    stays.
    """
    return curves.double().cummin(-1).values.masked_fill(curves == torch.inf, torch.inf)


def hull_slopes(curves: Floats, sizes: Integers) -> Floats:
    """Slopes of the lower convex hull of each curve, as (..., K - 1) distortion per token over the step k -> k + 1.

    They never fall along K, and steps below one edge of the hull carry exactly the same number. An infinite entry
    of a curve forbids that size: steps that must be taken to reach an allowed size are -inf, steps beyond the last
    allowed size +inf. By the min-max formula for convex minorants: step j has slope
    max over a <= j of min over b > j of (curve[b] - curve[a]) / (sizes[b] - sizes[a]).
    """
    columns = np.ascontiguousarray(np.moveaxis(curves, -1, 0))
    spans = (sizes - sizes[:, None]).reshape(len(sizes), len(sizes), *[1] * (curves.ndim - 1))
    slopes = np.empty_like(columns[1:])
    shallowest = np.full_like(columns, np.inf)  # from each a, over the b seen so far: those beyond the step
    with np.errstate(invalid="ignore"):
        for b in range(len(sizes) - 1, 0, -1):
            # inf - inf, where both ends are forbidden, is NaN, and fmin passes over it.
            shallowest = np.fmin(shallowest[:b], (columns[b] - columns[:b]) / spans[:b, b])
            slopes[b - 1] = shallowest.max(0)
    return np.moveaxis(slopes, 0, -1)


def gains(curves: Tensor, sizes: Tensor) -> Tensor:
    """Gain of each step of the hull, in distortion per token: (..., K - 1), never rising along K.

    Computed on the host in float64, so that a decision does not depend on the device.
    """
    slopes = hull_slopes(curves.detach().double().cpu().numpy(), sizes.cpu().numpy())
    return -torch.from_numpy(np.ascontiguousarray(slopes)).to(curves.device)
