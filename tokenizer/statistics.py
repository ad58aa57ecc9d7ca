"""Running statistics that all processes share."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor, nn


class Whiten(nn.Module):
    """Subtracts the running mean and undoes the running covariance: channels of unit variance, without correlation.

    Early in training an encoder's latents differ along one direction only (how bright the picture is), so that all
    channels of a code say the same and its codebook collapses to a few entries. Whitened, whatever else the latents
    carry reaches the decoder at full strength. The statistics are constants to the gradient, are the same on every
    process, and do not make a clip depend on its batch.
    """

    mean: Tensor
    covariance: Tensor
    updates: Tensor

    def __init__(self, channels: int, *, slowest: float = 0.02) -> None:
        """`slowest`: weight of the newest batch after the first 1 / slowest."""
        super().__init__()
        self.slowest = slowest
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("covariance", torch.eye(channels))
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) float32 -> the same shape, about zero mean and unit covariance."""
        if self.training:
            self._update(x.detach().flatten(0, -2))
        scale = self.covariance.diagonal().mean()
        eye = torch.eye(len(self.mean), device=x.device)
        root, _ = torch.linalg.cholesky_ex(self.covariance + 1e-5 * scale * eye)
        inverse: Tensor = torch.linalg.solve_triangular(root, eye, upper=False)
        return (x - self.mean) @ inverse.T

    @torch.no_grad()
    def _update(self, x: Tensor) -> None:
        centred = x - self.mean
        seen = mean_over_processes(torch.cat([centred.mean(0)[None], centred.T @ centred / len(x)]))
        shift, square = seen[0], seen[1:]
        weight = (1 / (self.updates + 1)).clamp(min=self.slowest)
        self.mean.add_(weight * shift)
        # Deviations from the moved mean: subtract what the move itself explains.
        moved = weight * torch.outer(shift, shift)
        self.covariance.lerp_(square - moved, weight)
        self.updates.add_(1)


class Standardize(nn.Module):
    """Per channel: subtracts the mean of what was seen and divides by its standard deviation; at first changes nothing.

    Seen is what `update` was told, not what passes through.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> the same shape."""
        return (x - self.mean) / self.std

    def undo(self, x: Tensor) -> Tensor:
        """What `forward` made -> what it was."""
        return x * self.std + self.mean

    def update(self, mean: Tensor, square: Tensor, step: int) -> None:
        """Average the (channels,) mean and mean square of step `step` (from 0) into those of earlier ones."""
        old_square = self.std.square() + self.mean.square()
        self.mean.lerp_(mean.to(self.mean), 1 / (step + 1))
        square = old_square.lerp(square.to(old_square), 1 / (step + 1))
        self.std.copy_((square - self.mean.square()).clamp(min=1e-12).sqrt())


def moments(x: Tensor) -> Tensor:
    """(rows, channels) -> (2, channels) float32: mean and mean square."""
    return torch.stack([x.float().mean(0), x.float().square().mean(0)])


def mean_over_processes(value: Tensor) -> Tensor:
    """Average of a detached tensor over the processes of a run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value
