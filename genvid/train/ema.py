"""Exponential moving average of a model's weights, which a run exports."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from genvid.checkpoint import Model
from genvid.train.sharding import gather, local_part, named_weights, split


class ExponentialAverage:
    """Average of parameters with decay min(decay, (1 + n) / (10 + n)) at update n, and of running statistics.

    Each process averages its local part of the weights, in float32 or wider. Made after the model is sharded (FSDP2,
    ZeRO-3), it takes memory for that part alone.
    """

    def __init__(self, model: Model, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.weights = named_weights(model)
        self.averages = {name: _copy(value) for name, value in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int, skip: Tensor) -> None:
        """Move towards the weights after optimizer step `step` (from 0); unchanged if `skip` is 1 instead of 0."""
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
        # A gradient step on |average - weights|^2 / 2: torch's fused kernel skips it on the device if `found_inf` is 1.
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
    def restart(self, replaced: dict[str, Tensor]) -> None:
        """Set rows of averages to the present weights: name of a weight -> (rows,) bool. All processes must call it."""
        for name, rows in replaced.items():
            average, weight = self.averages[name], self.weights[name]
            value = gather(local_part(weight), weight).to(average)
            mask = rows.view(-1, *(1,) * (value.ndim - 1))
            average.copy_(split(torch.where(mask, value, gather(average, weight)), weight))

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """The averaged model's `state_dict`, gathered, on the CPU. All processes must call it."""
        return {name: gather(average, self.weights[name]).cpu() for name, average in self.averages.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the result of `state_dict`, on any number of processes."""
        for name, average in self.averages.items():
            average.copy_(split(state[name].to(average.device), self.weights[name]))


def _copy(value: Tensor) -> Tensor:
    part = local_part(value)
    wide = torch.promote_types(part.dtype, torch.float32) if part.is_floating_point() else part.dtype
    return part.to(wide, copy=True)
