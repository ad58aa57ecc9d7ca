"""The contract of feature networks: video -> feature vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class FeatureNetwork(nn.Module, ABC):
    """Frozen network, video -> feature vector."""

    name: str
    num_features: int
    min_frames: int
    weights: str = ""
    """Hash of the weights: for provenance, and part of the key of cached features. Where it is empty an evaluation
    computes it."""
    is_fvd: bool = False
    """Whether a Fréchet distance on these features may be called FVD."""

    def check(self, video: Tensor) -> None:
        """ValueError unless `video` is (B, 3, T, H, W) with at least `min_frames` frames."""
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"a video is (B, 3, T, H, W), got {tuple(video.shape)}")
        if video.shape[2] < self.min_frames:
            raise ValueError(f"{self.name} needs clips of at least {self.min_frames} frames, got {video.shape[2]}")

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> (B, num_features), in float32 whatever the autocast and TF32 state."""
        with torch.autocast(video.device.type, enabled=False), _exact_convolutions():
            return self.extract(video.float())

    @abstractmethod
    def extract(self, video: Tensor) -> Tensor:
        """`forward` on a float32 video."""

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Never leaves evaluation mode."""
        return super().train(False)


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """cuDNN's float32 convolutions in float32: by default they round their inputs to TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
