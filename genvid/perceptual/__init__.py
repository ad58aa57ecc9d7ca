"""Differentiable perceptual distances between videos, chosen by configuration.

perceptual: {type: structure}                              needs nothing
perceptual: {type: squeezenet, weights: squeezenet1_1.pth} small and fast
perceptual: {type: lpips, net: vgg}                        the field's; weights from a path or torch.hub's cache
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

from genvid.config import Choice
from genvid.perceptual.deep import LPIPS, SqueezeNetDistance
from genvid.perceptual.distance import PerceptualDistance
from genvid.perceptual.structure import StructureDistance

__all__ = [
    "LPIPS",
    "LPIPSConfig",
    "PerceptualConfig",
    "PerceptualDistance",
    "SqueezeNetConfig",
    "SqueezeNetDistance",
    "StructureConfig",
    "StructureDistance",
]


@dataclass(frozen=True)
class PerceptualConfig(Choice):  # type: ignore[misc]
    """Which perceptual distance."""

    @abstractmethod
    def build(self) -> PerceptualDistance:
        """The distance; ValueError when its weights are missing."""


@PerceptualConfig.register_subclass("structure")
@dataclass(frozen=True)
class StructureConfig(PerceptualConfig):
    """The weight-free distance."""

    def build(self) -> PerceptualDistance:
        return StructureDistance()


@PerceptualConfig.register_subclass("squeezenet")
@dataclass(frozen=True)
class SqueezeNetConfig(PerceptualConfig):
    """SqueezeNet 1.1 features, unweighted."""

    weights: str

    def build(self) -> PerceptualDistance:
        return SqueezeNetDistance(self.weights)


@PerceptualConfig.register_subclass("lpips")
@dataclass(frozen=True)
class LPIPSConfig(PerceptualConfig):
    """LPIPS; `weights` None looks in torch.hub's cache."""

    net: Literal["vgg", "alex", "squeeze"] = "vgg"
    weights: str | None = None

    def build(self) -> PerceptualDistance:
        return LPIPS(self.net, self.weights)
