"""The contract of a perceptual distance: two videos in, one differentiable number per clip (or per frame) out.

The same object is a training loss and a metric, so that losses and reported numbers can be compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class PerceptualDistance(nn.Module, ABC):
    """Frame-wise distance between a video and its target, >= 0, and 0 for equal videos.

    Computed in float32 whatever the autocast state. Gradients flow to `video`, never to `target`. An instance owns no
    parameters and no persistent buffers: it adds nothing to the state of the task that holds it.
    """

    name: str
    """Name of the numbers that are made with this distance."""
    min_size: int
    """Smallest height and width of a frame, in pixels."""

    def __init__(self, frames_per_pass: int = 128) -> None:
        super().__init__()
        self.frames_per_pass = frames_per_pass

    def forward(self, video: Tensor, target: Tensor) -> Tensor:
        """(B, 3, T, H, W) twice, in [-1, 1] -> (B,) float32, the mean over frames."""
        return self.per_frame(video, target).mean(1)

    def per_frame(self, video: Tensor, target: Tensor) -> Tensor:
        """(B, 3, T, H, W) twice, in [-1, 1] -> (B, T) float32.

        Frames go through in passes of `frames_per_pass`, which bounds memory, and in one where a gradient is recorded,
        for which all passes would be kept.
        """
        if video.ndim != 5 or video.shape[1] != 3 or video.shape != target.shape:
            raise ValueError(
                f"{self.name} compares two videos of one shape (B, 3, T, H, W), "
                f"got {tuple(video.shape)} and {tuple(target.shape)}"
            )
        batch, _, frames, height, width = video.shape
        if min(height, width) < self.min_size:
            raise ValueError(f"{self.name} needs frames of at least {self.min_size} pixels, got {height}x{width}")
        recorded = torch.is_grad_enabled() and video.requires_grad
        at_once = batch * frames if recorded else self.frames_per_pass
        with torch.autocast(video.device.type, enabled=False):
            pairs = zip(
                torch.split(video.float().transpose(1, 2).flatten(0, 1), at_once),
                torch.split(target.detach().float().transpose(1, 2).flatten(0, 1), at_once),
                strict=True,
            )
            return torch.cat([self.frame_distance(*pair) for pair in pairs]).view(batch, frames)

    @abstractmethod
    def frame_distance(self, frames: Tensor, target: Tensor) -> Tensor:
        """(N, 3, H, W) twice, float32 in [-1, 1] -> (N,)."""
