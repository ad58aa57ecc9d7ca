"""Exponential moving average of a model's weights: what a run exports."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from genvid.checkpoint import Model
from genvid.train.sharding import gather, local_part, named_weights, split


class ExponentialAverage:
    """Average of parameters with decay min(decay, (1 + n) / (10 + n)) at update n, and of running statistics.

    Each process averages what it holds of the weights, in float32 at least: made after the model was spread over the
    processes (FSDP2, ZeRO-3), it costs each its share.
    """

    def __init__(self, model: Model, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.weights = named_weights(model)
        self.averages = {name: _copy(value) for name, value in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int, skip: Tensor) -> None:
        """Move towards the weights after optimizer step `step` (from 0), or stay where `skip` is 1 instead of 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for name, average in self.averages.items():
            value = local_part(self.weights[name])
            if average.is_floating_point():
                averaged.append(average)
                current.append(value.to(average))
            else:
                average.copy_(value)
        # The gradient of |average - weights|^2 / 2 leads there; torch's fused step can be skipped without being asked.
        sgd(
            averaged,
            current,
            [None] * len(averaged),
            fused=True,
            found_inf=skip,
            lr=1 - decay,
            weight_decay=1.0,
            maximize=True,
            momentum=0.0,
            dampening=0.0,
            nesterov=False,
        )

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """The averaged model's `state_dict`, whole, on the CPU. All processes must call it."""
        return {name: gather(average, self.weights[name]).cpu() for name, average in self.averages.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what `state_dict` returned, under whatever number of processes."""
        for name, average in self.averages.items():
            average.copy_(split(state[name].to(average.device), self.weights[name]))


def _copy(value: Tensor) -> Tensor:
    part = local_part(value)
    wide = torch.promote_types(part.dtype, torch.float32) if part.is_floating_point() else part.dtype
    return part.to(wide, copy=True)
