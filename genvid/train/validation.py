"""Loss on held-out data while a run trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from genvid.batch import Batch
from genvid.train.means import Means
from genvid.train.sharding import reshard
from genvid.train.step import TrainingStep

PREFIX = "held_out/"
"""Beginning of the journal names of held-out losses and terms."""


class Validation:
    """Loss and terms of a task on the same held-out micro-batches every time, in evaluation mode and without gradients.

    The weights are those being trained, not their moving average. Later steps are unaffected: every step seeds the
    generators anew.
    """

    def __init__(self, step: TrainingStep, micro_batches: Sequence[Batch], every: int) -> None:
        """`micro_batches`: those of this process, as many as every other process has."""
        self.step, self.every = step, every
        self.micro_batches = [{name: value.cpu() for name, value in batch.items()} for batch in micro_batches]

    def due(self, step: int) -> bool:
        """Whether step `step` (from 0) is followed by a measurement: every `every` steps, and after the last."""
        return (step + 1) % self.every == 0 or step + 1 == self.step.config.steps

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """Means over all held-out items and processes after step `step`, by journal name."""
        runner, task, device = self.step, self.step.task, self.step.accelerator.device
        means, skip = Means(), torch.tensor(False, device=device)
        sums: dict[str, list[dict[str, Tensor]]] = defaultdict(list)
        runner.seed_generators(0)
        runner.model.eval()
        for held in self.micro_batches:
            batch, carry = {name: value.to(device) for name, value in held.items()}, dict[str, Tensor]()
            items = task.num_items(batch).to(device)
            for phase in task.phases_by(step):
                output = runner.forward(batch, phase, step, carry)
                carry = output.carry
                means.add_output(task.prefix(phase), output, items, skip)
                # CUDA graphs reuse the memory of their outputs.
                sums[phase].append({name: value.clone() for name, value in output.sums.items()})
        runner.model.train()
        reshard(runner.model)
        for phase, parts in sums.items():
            terms = task.summary(phase, runner.totals(parts))
            if terms:
                named = {task.prefix(phase) + name: value for name, value in terms.items()}
                means.add(named, torch.ones((), device=device), skip)
        return {PREFIX + name: value for name, value in means.read(runner.accelerator).means.items()}
