"""Skipping of steps whose loss or gradient is not finite; too many in a row end the run.

The check and the counts stay on the device. The host reads them only when it writes to the journal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from genvid.train.task import TrainingTask


@dataclass(frozen=True)
class Skipped:
    """Counts of skipped steps."""

    total: int
    """Since the run began."""
    from_limit: int
    """From the step on that was the last of too many in a row. All steps after it are skipped."""


class NonFiniteGuard:
    """Holds the tensor `bad`: 1 when the present step is to be skipped, else 0.

    torch's fused optimizers read it as `found_inf`, where a gradient scaler would put it, and then leave weights,
    moments and step counts unchanged. After `limit` bad steps in a row, of those in which one phase ran, all later ones
    are bad.
    """

    def __init__(
        self, task: TrainingTask, optimizers: Iterable[torch.optim.Optimizer], device: torch.device, limit: int
    ) -> None:
        self.limit = limit
        self.bad, self.skipped, self.from_limit = (torch.zeros((), device=device) for _ in range(3))
        self.in_a_row = {phase: torch.zeros((), device=device) for phase in task.phases}
        for optimizer in optimizers:
            optimizer.found_inf = self.bad  # type: ignore[attr-defined]
        # Running statistics are updated before the step is known to be good: copies of them are restored if it is not.
        kept = task.state_dict(keep_vars=True)
        self.statistics = [b for name, b in task.named_buffers() if name in kept and b.is_floating_point()]
        self.before = [buffer.clone() for buffer in self.statistics]

    @torch.no_grad()
    def begin(self) -> None:
        """Before the first phase of a step."""
        torch.gt(self.from_limit, 0, out=self.bad)
        if self.statistics:
            torch._foreach_copy_(self.before, self.statistics)

    @torch.no_grad()
    def check(self, norm: Tensor) -> None:
        """Mark this phase and the rest of the step as skipped if `norm` is not finite; after the backward pass."""
        torch.ne(torch.add(self.bad, norm, alpha=0), 0, out=self.bad)

    @torch.no_grad()
    def end(self, phases: Iterable[str]) -> None:
        """After the last of the `phases` of a step."""
        self.skipped.add_(self.bad)
        for phase in phases:
            self.in_a_row[phase].add_(1).mul_(self.bad)
        self.from_limit.add_(torch.stack(list(self.in_a_row.values())).amax() >= self.limit)
        if self.statistics:
            bad = self.bad.bool()
            for buffer, before in zip(self.statistics, self.before, strict=True):
                torch.where(bad, before, buffer, out=buffer)

    def read(self) -> Skipped:
        """The counts so far. Waits for the device."""
        return Skipped(*torch.stack([self.skipped, self.from_limit]).long().tolist())


def poisoned(scale: Tensor, loss: Tensor) -> Tensor:
    """`scale`, or NaN where `loss` is not finite: the gradients that all processes share are then NaN too."""
    return torch.add(scale, loss.detach(), alpha=0)
