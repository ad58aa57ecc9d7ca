"""Running statistics, updated once a training step with sums over the whole global batch (`StepOutput.sums`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SLOWEST = 0.02
"""Weight of the newest step in running statistics, once 1 / 0.02 steps are averaged."""


class Whiten(nn.Module):
    """Subtracts the running mean and undoes the running covariance: channels of unit variance, without correlation.

    Early in training an encoder's latents vary along one direction only (brightness), so the channels of a code are
    redundant and the codebook collapses to a few entries. Whitening scales all other directions up to unit variance.
    The statistics are constants to the gradient and independent of the batch: they change only through `update`.
    Before the first one, `forward` is the identity.
    """

    mean: Tensor
    covariance: Tensor
    updates: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("covariance", torch.eye(channels))
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) float32 -> the same shape, about zero mean and unit covariance."""
        scale = self.covariance.diagonal().mean()
        eye = torch.eye(len(self.mean), device=x.device)
        root, _ = torch.linalg.cholesky_ex(self.covariance + 1e-5 * scale * eye)
        inverse: Tensor = torch.linalg.solve_triangular(root, eye, upper=False)
        return (x - self.mean) @ inverse.T

    @torch.no_grad()
    def sums(self, x: Tensor) -> Tensor:
        """(..., channels) -> (1 + channels, 1 + channels) float64: sums of all products of (1, x - mean)."""
        centred = (x - self.mean).flatten(0, -2).double()
        extended = torch.cat([torch.ones_like(centred[:, :1]), centred], 1)
        return extended.T @ extended

    @torch.no_grad()
    def update(self, sums: Tensor) -> None:
        """Average the mean and covariance of one step, from its `sums`, into those of earlier steps."""
        means = (sums[1:] / sums[0, 0]).to(self.mean)
        shift, square = means[:, 0], means[:, 1:]
        weight = (1 / (self.updates + 1)).clamp(min=_SLOWEST)
        self.mean.add_(weight * shift)
        # Deviations from the moved mean.
        moved = weight * torch.outer(shift, shift)
        self.covariance.lerp_(square - moved, weight)
        self.updates.add_(1)


class Standardize(nn.Module):
    """Per channel: subtracts the running mean and divides by the running standard deviation.

    The statistics change only through `update`; before the first one, `forward` is the identity.
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
        """The inverse of `forward`."""
        return x * self.std + self.mean

    def update(self, mean: Tensor, square: Tensor, step: int) -> None:
        """Average the (channels,) mean and mean square of step `step` (from 0) into those of earlier ones."""
        old_square = self.std.square() + self.mean.square()
        self.mean.lerp_(mean.to(self.mean), 1 / (step + 1))
        square = old_square.lerp(square.to(old_square), 1 / (step + 1))
        self.std.copy_((square - self.mean.square()).clamp(min=1e-12).sqrt())


@torch.no_grad()
def moment_sums(x: Tensor, keep: Tensor) -> Tensor:
    """(..., channels) vectors, of which those with `keep` (...) bool count -> (3, channels) float64: their number, sum,
    and sum of squares."""
    x = torch.where(keep[..., None], x, 0).float().flatten(0, -2)
    number = keep.sum(dtype=torch.double).expand(x.shape[1])
    return torch.stack([number, x.sum(0, dtype=torch.double), x.square().sum(0, dtype=torch.double)])
