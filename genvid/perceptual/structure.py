"""A perceptual distance that needs no weights: contrast-normalised differences on a Laplacian pyramid.

Two facts of vision carry it, as in the normalized Laplacian pyramid distance (Laparra et al. 2016): detail is seen
relative to the contrast around it, and errors at all scales count. On every band of a Laplacian pyramid it compares

* the band itself, its difference divided by the target's local amplitude: errors hide in texture, not in flat areas;
* the band's local amplitude: it tolerates small shifts of detail, and responds to missing (blur) and added (noise)
  detail.

As a loss it departs from that paper: the first term is normalised by the target alone, which makes it convex in the
video, so the optimiser cannot lower it by adding contrast. Fine bands weigh more than coarse ones, luma more than
chroma. The weights were chosen for agreement with a trained network (docs/evaluation.md has the numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genvid.perceptual.distance import PerceptualDistance

_OPPONENT = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
"""RGB -> luma and two chroma planes (ITU-R BT.601)."""
_PLANES = (0.625, 0.1875, 0.1875)
"""Weights of the three planes."""
_VISIBLE = 0.05
"""Amplitude, in units of the [-1, 1] range, below which contrast no longer masks errors (6 grey levels)."""
_FLAT = 0.25
"""Difference of plain colour that counts as much as structure that is wholly wrong."""
_OCTAVE = 0.5
"""Weight of a band relative to the next finer one."""
_SMALLEST_BAND = 8


class StructureDistance(PerceptualDistance):
    """Multi-scale structure distance; unitless: up to 0.1 is hard to see, 0.5 is badly blurred, noise goes beyond 1."""

    name = "structure distance"
    min_size = _SMALLEST_BAND

    def __init__(self, frames_per_pass: int = 256) -> None:
        super().__init__(frames_per_pass)

    def frame_distance(self, frames: Tensor, target: Tensor) -> Tensor:
        bands, wanted = _pyramid(frames), _pyramid(target)
        distances = [_band_distance(*pair) for pair in zip(bands[:-1], wanted[:-1], strict=True)]
        distances.append((bands[-1] - wanted[-1]).abs() / _FLAT)
        planes = frames.new_tensor(_PLANES)
        total = frames.new_zeros(len(frames))
        for octave, distance in enumerate(distances):
            total = total + _OCTAVE**octave * (distance.mean((2, 3)).view(-1, 3) @ planes)
        return total / sum(_OCTAVE**octave for octave in range(len(distances)))


def _band_distance(band: Tensor, wanted: Tensor) -> Tensor:
    """Two bands -> the same shape, >= 0: difference of the band plus difference of its local amplitude."""
    amplitude, wanted_amplitude = _amplitude(band), _amplitude(wanted)
    structure = (band - wanted).abs() / (wanted_amplitude + _VISIBLE)
    energy = (amplitude - wanted_amplitude).abs() / ((amplitude + wanted_amplitude) / 2 + _VISIBLE)
    return structure + energy


def _pyramid(frames: Tensor) -> list[Tensor]:
    """(N, 3, H, W) -> Laplacian bands of halving size, then the low-pass rest, all opponent colours: (N, 3, h, w)."""
    image = torch.einsum("oc,nchw->nohw", frames.new_tensor(_OPPONENT), frames)
    bands = []
    while min(image.shape[-2:]) >= _SMALLEST_BAND:
        coarse = _filtered(image, _halving)
        bands.append(image - _filtered(coarse, _doubling, image.shape[-2:]))
        image = coarse
    return [*bands, image]


def _amplitude(band: Tensor) -> Tensor:
    """Root mean square over 5x5 neighbourhoods."""
    return (_filtered(band.square(), _averaging) + 1e-8).sqrt()


def _filtered(image: Tensor, respond: Callable[[Tensor, int], Tensor], size: Sequence[int] | None = None) -> Tensor:
    """(..., H, W) -> (..., h, w): a separable linear filter as one matrix for each axis, its responses to unit vectors.

    Products of matrices, edges included, are faster than convolutions of three planes, forwards and more so backwards.
    """
    across, down = (
        respond(torch.eye(length, device=image.device)[:, None], target)[:, 0]
        for length, target in zip(image.shape[:-3:-1], (size or image.shape[-2:])[::-1], strict=True)
    )
    return down.T @ (image @ across)


def _halving(signals: Tensor, size: int) -> Tensor:
    """(N, 1, size) -> (N, 1, size // 2): binomial (1, 3, 3, 1) low-pass and subsampling by two, edges repeated."""
    kernel = signals.new_tensor((1.0, 3.0, 3.0, 1.0))[None, None] / 8
    return F.conv1d(F.pad(signals, (1, 1), mode="replicate"), kernel, stride=2)


def _doubling(signals: Tensor, size: int) -> Tensor:
    """(N, 1, length) -> (N, 1, size) by linear interpolation."""
    return F.interpolate(signals, size, mode="linear", align_corners=False)


def _averaging(signals: Tensor, size: int) -> Tensor:
    """(N, 1, size) -> the same: means over 5 places."""
    return F.avg_pool1d(signals, 5, stride=1, padding=2, count_include_pad=False)
