"""Fidelity of a reconstruction to its original: scores of single clips, averaged over clips.

`ClipPSNR` averages the decibels of each clip. Pooling the squared error over clips first gives another number (22.97
instead of 30.00 dB for the same two clips).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

_LOSSLESS_DB = 100.0
SMALLEST_MS_SSIM = 176
"""Side of the smallest frame whose fifth scale, halved four times, still holds a window of 11 pixels."""


class ClipScore(nn.Module, ABC):
    """A score of a reconstruction against its original, averaged over clips."""

    name: str
    unit: str
    better: Literal["higher", "lower"]

    @abstractmethod
    def score(self, video: Tensor, target: Tensor) -> Tensor:
        """(B, 3, T, H, W) twice -> (B,). Values outside [-1, 1] are clamped, as a display would."""


class ClipPSNR(ClipScore):
    """Peak signal-to-noise ratio of each clip, averaged over clips; a clip that is exact counts as 100 dB."""

    better = "higher"
    name = "PSNR"
    unit = "dB"

    def score(self, video: Tensor, target: Tensor) -> Tensor:
        ratio: Tensor = peak_signal_noise_ratio(
            _displayed(video), _displayed(target), data_range=1.0, reduction="none", dim=(1, 2, 3, 4)
        )
        return ratio.clamp(max=_LOSSLESS_DB)


class ClipSSIM(ClipScore):
    """Structural similarity (Gaussian window of 11 pixels), averaged over the frames of a clip, then over clips."""

    better = "higher"
    name = "SSIM"
    unit = ""

    def score(self, video: Tensor, target: Tensor) -> Tensor:
        if min(video.shape[-2:]) < 11:
            raise ValueError(f"SSIM needs frames of at least 11 pixels, got {video.shape[-2]}x{video.shape[-1]}")
        frames, wanted = (_displayed(x).transpose(1, 2).flatten(0, 1) for x in (video, target))
        per_frame: Tensor = structural_similarity_index_measure(frames, wanted, data_range=1.0, reduction="none")
        return per_frame.view(len(video), -1).mean(1)


class ClipUniformSSIM(ClipScore):
    """Structural similarity as scikit-image computes it by default: uniform windows of 7 pixels that lie in the frame,
    sample (co)variances; averaged over channels and frames, then over clips."""

    better = "higher"
    name = "SSIM (uniform window)"
    unit = ""

    def score(self, video: Tensor, target: Tensor) -> Tensor:
        pairs = zip(_displayed(video).unbind(2), _displayed(target).unbind(2), strict=True)
        return torch.stack([_uniform_ssim(frame, wanted) for frame, wanted in pairs]).mean(0)


class ClipMSSSIM(ClipScore):
    """Multi-scale structural similarity: five scales, weights of Wang et al. 2003; mean over frames, then clips."""

    better = "higher"
    name = "MS-SSIM"
    unit = ""

    def score(self, video: Tensor, target: Tensor) -> Tensor:
        if min(video.shape[-2:]) < SMALLEST_MS_SSIM:
            raise ValueError(
                f"MS-SSIM needs frames of at least {SMALLEST_MS_SSIM} pixels, got {video.shape[-2]}x{video.shape[-1]}"
            )
        frames, wanted = (_displayed(x).transpose(1, 2).flatten(0, 1) for x in (video, target))
        per_frame: Tensor = multiscale_structural_similarity_index_measure(
            frames, wanted, data_range=1.0, reduction="none"
        )
        return per_frame.view(len(video), -1).mean(1)


class ClipFlicker(ClipScore):
    """Root mean square of the error's change from one frame to the next, in levels of 8 bits, averaged over clips.

    0 for a constant error, however large; a frame-wise measure such as PSNR is the same for that and for an error that
    comes and goes. Clips of a single frame have none.
    """

    better = "lower"
    name = "flicker"
    unit = "levels"

    def score(self, video: Tensor, target: Tensor) -> Tensor:
        error = 255 * (_displayed(video) - _displayed(target))
        if error.shape[2] == 1:
            return error.new_zeros(len(error))
        return error.diff(dim=2).square().mean((1, 2, 3, 4)).sqrt()


class ClipDistance(Protocol):
    """A perceptual distance, or any other distance of two videos that has a name."""

    @property
    def name(self) -> str: ...

    def __call__(self, video: Tensor, target: Tensor, /) -> Tensor:
        """(B, 3, T, H, W) twice, in [-1, 1] -> (B,)."""
        ...


class MeanPerceptual(ClipScore):
    """A perceptual distance, averaged over clips. Its name is the distance's own."""

    better = "lower"
    unit = ""

    def __init__(self, distance: ClipDistance) -> None:
        super().__init__()
        self.distance = distance
        self.name = distance.name

    @torch.no_grad()
    def score(self, video: Tensor, target: Tensor) -> Tensor:
        return self.distance(video.clamp(-1, 1), target.clamp(-1, 1))


def _displayed(video: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped, float32 or wider."""
    return (video.float().clamp(-1, 1) + 1) / 2


def _uniform_ssim(frame: Tensor, wanted: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] twice -> (B,)."""
    a, b = frame.double(), wanted.double()  # differences of squares
    mean_a, mean_b, square_a, square_b, product = (avg_pool2d(x, 7, 1) for x in (a, b, a * a, b * b, a * b))
    sample = 49 / 48
    spread = sample * (square_a - mean_a**2 + square_b - mean_b**2)
    common = sample * (product - mean_a * mean_b)
    luminance, contrast = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + luminance) * (2 * common + contrast)
    similarity = similarity / ((mean_a**2 + mean_b**2 + luminance) * (spread + contrast))
    return similarity.mean((1, 2, 3))
