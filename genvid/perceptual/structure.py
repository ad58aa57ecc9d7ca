"""A perceptual distance that needs no weights: contrast-normalised differences on a Laplacian pyramid.

Two facts of vision carry it, as in the normalized Laplacian pyramid distance (Laparra et al. 2016): detail is seen
relative to the contrast around it, and errors at all scales count. On every band of a Laplacian pyramid it compares

* the band itself, difference divided by the target's local amplitude (errors hide in texture, not in flat areas);
* the band's local amplitude, divided likewise: this one does not care where exactly the detail is, so it forgives a
  small shift, but sees that detail is missing (blur) or was invented (noise).

We depart from that paper where a loss asks for it: both terms are divided by the *target's* amplitude only, so that
the normaliser is a constant for the optimiser (it cannot lower the loss by adding contrast) and the first term is
convex in the video.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genvid.perceptual.distance import PerceptualDistance

_OPPONENT = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
"""RGB -> luma and two chroma planes (ITU-R BT.601)."""
_VISIBLE = 0.03
"""Amplitude, in units of the [-1, 1] range, below which contrast no longer masks errors (about 4 grey levels)."""
_SMALLEST_BAND = 8


class StructureDistance(PerceptualDistance):
    """Multi-scale structure distance; unitless, about 0 to 2, the mean over pyramid bands."""

    name = "structure distance"
    min_size = _SMALLEST_BAND

    def __init__(self, frames_per_pass: int = 256) -> None:
        super().__init__(frames_per_pass)

    def frame_distance(self, frames: Tensor, target: Tensor) -> Tensor:
        bands, target_bands = _pyramid(frames), _pyramid(target)
        distances = []
        for band, wanted in zip(bands[:-1], target_bands[:-1], strict=True):
            amplitude, wanted_amplitude = _amplitude(band), _amplitude(wanted)
            structure = (band - wanted).abs() / (wanted_amplitude + _VISIBLE)
            energy = (amplitude - wanted_amplitude).abs() / (wanted_amplitude + _VISIBLE)
            # log1p bounds what one badly wrong place can add: noise on a flat area is off by a large factor there.
            distances.append((structure.log1p() + energy.log1p()).mean((1, 2, 3)))
        colour = (bands[-1] - target_bands[-1]).abs().mean((1, 2, 3)) / _VISIBLE
        distances.append(colour.log1p())
        return torch.stack(distances).mean(0)


def _pyramid(frames: Tensor) -> list[Tensor]:
    """(N, 3, H, W) -> Laplacian bands of halving size, then the low-pass rest, all (N, 3, h, w) opponent colours."""
    image = torch.einsum("oc,nchw->nohw", frames.new_tensor(_OPPONENT), frames)
    bands = []
    while min(image.shape[-2:]) >= _SMALLEST_BAND:
        coarse = _halve(image)
        bands.append(image - F.interpolate(coarse, image.shape[-2:], mode="bilinear", align_corners=False))
        image = coarse
    return [*bands, image]


def _halve(image: Tensor) -> Tensor:
    """Binomial (1, 3, 3, 1) low-pass and subsampling by two."""
    kernel = image.new_tensor((1.0, 3.0, 3.0, 1.0)) / 8
    planes = F.pad(image, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    return F.conv2d(planes, torch.outer(kernel, kernel)[None, None], stride=2).unflatten(0, image.shape[:2])[:, :, 0]


def _amplitude(band: Tensor) -> Tensor:
    """Root mean square over 5x5 neighbourhoods."""
    return (F.avg_pool2d(band.square(), 5, stride=1, padding=2, count_include_pad=False) + 1e-8).sqrt()
