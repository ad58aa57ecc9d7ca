"""The contract of a perceptual distance: two videos in, one differentiable number per clip (or per frame) out.

The same object is a training loss and a metric, so that losses and reported numbers can be compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

_GRADIENT_SCALE = 2.0**10
"""Factor of gradients on their way through a network: they are about 1e-7, and float16 ends at 6e-8."""


class PerceptualDistance(nn.Module, ABC):
    """Frame-wise distance between a video and its target, >= 0, and 0 for equal videos.

    Computed in float32 whatever the autocast state, networks in training excepted (`precision`). Gradients flow to
    `video`, never to `target`. An instance owns no parameters and no persistent buffers: it adds nothing to the state
    of the task that holds it.
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

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile a pass over frames, with the options of torch.compile."""
        self._measure = torch.compile(self._measure, *arguments, **options)  # type: ignore[method-assign]

    def per_frame(self, video: Tensor, target: Tensor) -> Tensor:
        """(B, 3, T, H, W) twice, in [-1, 1] -> (B, T) float32.

        Frames go through in passes of `frames_per_pass`, which bounds memory, in training too: where a gradient is
        recorded, it is computed at once, and nothing else is kept for the backward pass.
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
        with self.precision(video, recorded):
            pairs = zip(
                torch.split(video.float().transpose(1, 2).flatten(0, 1), self.frames_per_pass),
                torch.split(target.detach().float().transpose(1, 2).flatten(0, 1), self.frames_per_pass),
                strict=True,
            )
            return torch.cat([self._measure(*pair, recorded) for pair in pairs]).view(batch, frames)

    def _measure(self, frames: Tensor, target: Tensor, recorded: bool) -> Tensor:
        """`frame_distance`; if `recorded`, its gradient is kept in place of all that a network computes from a frame,
        which is a hundred times as much."""
        if not recorded:
            return self.frame_distance(frames, target)

        def total(frames: Tensor) -> tuple[Tensor, Tensor]:
            distance = self.frame_distance(frames, target)
            return _GRADIENT_SCALE * distance.sum(), distance

        gradient, distance = torch.func.grad(total, has_aux=True)(frames.detach())
        zero = ((frames - frames.detach()) * gradient / _GRADIENT_SCALE).flatten(1).sum(1)
        measured: Tensor = distance + zero
        return measured

    def precision(self, video: Tensor, recorded: bool) -> torch.autocast:
        """Context of `frame_distance`: no autocast. `recorded`: whether a gradient is computed too."""
        return torch.autocast(video.device.type, enabled=False)

    @abstractmethod
    def frame_distance(self, frames: Tensor, target: Tensor) -> Tensor:
        """(N, 3, H, W) twice, float32 in [-1, 1] -> (N,) float32."""
