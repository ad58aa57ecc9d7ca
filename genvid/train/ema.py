"""Exponential moving average of a model's weights: what a run exports."""

from __future__ import annotations

import copy

import torch

from genvid.checkpoint import Model


class ExponentialAverage:
    """Average of parameters with decay min(decay, (1 + n) / (10 + n)) at update n, and of running statistics."""

    def __init__(self, model: Model, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Model, step: int) -> None:
        """Move towards the weights after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged: list[torch.Tensor] = list(self.model.parameters())
        current = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for buffer, value in zip(self.model.buffers(), model.buffers(), strict=True):
            if buffer.is_floating_point():
                buffer.lerp_(value, 1 - decay)
            else:
                buffer.copy_(value)
