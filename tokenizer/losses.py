"""Distortion between a video and its reconstruction: the loss of tokenizers and the target of scorers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from genvid.perceptual import PerceptualConfig, PerceptualDistance, StructureConfig

LEAST_MSE = 1e-5
"""Lower bound of the MSE in the logarithm: 50 dB."""


@dataclass(frozen=True)
class DistortionConfig:
    """Weights of the parts. L1 and MSE are in units of the [0, 1] range, whatever range the tensors have."""

    l1: float = 0.0
    mse: float = 0.0
    log_mse: float = 0.0
    """Of log10 of the MSE, 0.1 per decibel: an allocator that minimises its mean maximises the mean PSNR. Under the
    MSE most tokens go to the few clips with the largest errors."""
    perceptual: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.l1, self.mse, self.log_mse, self.perceptual)
        if min(weights) < 0 or not any(weights):
            raise ValueError(f"distortion weights must be non-negative and not all zero, got {self}")


class Distortion(nn.Module):
    """Weighted sum of L1, MSE, its logarithm and a perceptual distance, per clip."""

    def __init__(self, config: DistortionConfig, perceptual: PerceptualDistance) -> None:
        super().__init__()
        self.config = config
        self.perceptual = perceptual

    @property
    def name(self) -> str:
        """For reports: `1 l1 + 1 structure`."""
        config = self.config
        weights = {
            "l1": config.l1,
            "mse": config.mse,
            "log mse": config.log_mse,
            self.perceptual.name: config.perceptual,
        }
        return " + ".join(f"{weight:g} {name}" for name, weight in weights.items() if weight)

    def forward(self, reconstruction: Tensor, video: Tensor) -> Tensor:
        """Two (B, 3, T, H, W) videos in [-1, 1] -> (B,)."""
        return sum(
            (value for value in self.parts(reconstruction, video).values()), torch.zeros((), device=video.device)
        )

    def parts(self, reconstruction: Tensor, video: Tensor) -> dict[str, Tensor]:
        """The weighted parts, each (B,), by name."""
        difference = (reconstruction.float() - video.float()) / 2
        parts = {}
        if self.config.l1:
            parts["l1"] = self.config.l1 * difference.abs().flatten(1).mean(1)
        if self.config.mse or self.config.log_mse:
            error = difference.square().flatten(1).mean(1)
        if self.config.mse:
            parts["mse"] = self.config.mse * error
        if self.config.log_mse:
            parts["log_mse"] = self.config.log_mse * error.clamp(min=LEAST_MSE).log10()
        if self.config.perceptual:
            parts["perceptual"] = self.config.perceptual * self.perceptual(reconstruction, video)
        return parts


@dataclass(frozen=True)
class DistortionSpec:
    """A distortion of a config: the loss of training, or the target of a scorer."""

    weights: DistortionConfig = field(default_factory=DistortionConfig)
    perceptual: PerceptualConfig = field(default_factory=StructureConfig)

    def build(self) -> Distortion:
        return Distortion(self.weights, self.perceptual.build())
