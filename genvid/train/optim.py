"""Optimizers, and learning rates as functions of the step: a schedule has no state to save."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genvid.train.muon import Muon


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon and AdamW. The learning rate warms up linearly, is constant until the last `decay_steps` steps,
    and decays by a cosine until the last step."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    """Of matrices only: biases, norms and other vectors are not decayed."""
    warmup_steps: int = 0
    """First steps of the run, counted alike for a phase that trains in every n-th of them (as in the published code of
    AdapTok) or begins later."""
    decay_steps: int | None = None
    """Length of the decay at the end of the run; until it begins, `train.steps` may be changed on resume. Null: decay
    from the end of the warm-up, which fixes `train.steps`."""
    final_lr: float = 0.01
    """Learning rate at the end of the decay, as a fraction of `lr`."""
    clip_norm: float | None = 1.0
    muon: bool = False
    """Orthogonalise the updates of the task's matrices (Muon, Jordan et al. 2024) at AdamW's step size; AdamW for the
    rest. Small tokenizers learn several times faster with it (docs/results/small_tokenizer.md)."""
    adamw_scale: float = 1.0
    """Learning rate of AdamW beside Muon, as a multiple of `lr`."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        for name in ("weight_decay", "warmup_steps", "final_lr"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive or null, got {self.clip_norm}")
        if self.decay_steps is not None and self.decay_steps < 0:
            raise ValueError(f"decay_steps must be at least 0 or null, got {self.decay_steps}")
        if self.adamw_scale <= 0 or (self.adamw_scale != 1 and not self.muon):
            raise ValueError(f"adamw_scale is a positive number, for AdamW beside Muon alone, got {self}")

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of optimizer step `step` (from 0) of `steps`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        decay = steps if self.decay_steps is None else self.decay_steps
        begin = max(self.warmup_steps, steps - decay)
        progress = max(0, step - begin) / max(1, steps - begin)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.lr * (self.final_lr + (1 - self.final_lr) * cosine)

    def check_extension(self, done: int, held: int, steps: int) -> None:
        """ValueError when the last of `done` steps had another learning rate in a run of `held` steps than in one of
        `steps`."""
        old, new = self.lr_at(done - 1, held), self.lr_at(done - 1, steps)
        if old != new:
            raise ValueError(
                f"train.steps cannot become {steps} after {done} of {held} steps: the learning rate, {old:.3g} by now, "
                f"would jump to {new:.3g}. Keep {held}, or train anew with decay_steps, which leaves train.steps open "
                f"until the decay begins (docs/training.md, Resuming)"
            )


def make_optimizers(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, matrices: Container[Tensor] = ()
) -> list[torch.optim.Optimizer]:
    """Optimizers that together cover `parameters`: with `config.muon`, Muon for those among `matrices`.

    Weight decay is on tensors of two or more dimensions only. AdamW is one kernel a step on a GPU.
    """
    parameters = list(parameters)
    orthogonal = [p for p in parameters if config.muon and p in matrices]
    rest = [p for p in parameters if not (config.muon and p in matrices)]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [{**group, "scale": config.adamw_scale} for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)]
    if orthogonal:
        optimizers.append(Muon(orthogonal, lr=config.lr, weight_decay=config.weight_decay))
    return optimizers


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
