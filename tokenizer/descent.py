"""Gradient steps at encoding that bring the decoder nearer to one video."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_RATE = 0.2
"""Of the first step, in units of the change; it falls to zero as a cosine."""
_BETAS = (0.5, 0.9)
"""Of Adam: short memories, since there are few steps."""


def check_steps(steps: int) -> None:
    """ValueError below 0."""
    if steps < 0:
        raise ValueError(f"tokens are refined by at least 0 steps, got {steps}")


def least_error(change: Tensor, decoded: Callable[[Tensor], tuple[Tensor, Tensor]], steps: int) -> Tensor:
    """The result of least error among those of `steps` steps and of no step, of each video by itself.

    `change` (B, ...): where they begin. `decoded`: a change -> errors (B,), differentiable, and results (B, ...).
    """
    change = change.clone().requires_grad_()
    optimizer = torch.optim.Adam([change], betas=_BETAS)
    best: Tensor | None = None
    for step in range(steps + 1):
        with torch.enable_grad():
            errors, results = decoded(change)
            total = errors.sum()
        errors, results = errors.detach(), results.detach()
        if best is None:
            best, least = results, errors
        better = errors < least
        least = torch.where(better, errors, least)
        best = torch.where(better.view(-1, *[1] * (results.ndim - 1)), results, best)
        if step < steps:
            (change.grad,) = torch.autograd.grad(total, change)
            optimizer.param_groups[0]["lr"] = _RATE * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.step()
    assert best is not None
    return best
