"""What a stage of training must say: its loss on a batch, in which phases, and what is exported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from genvid.batch import Batch
from genvid.checkpoint import Model


@dataclass
class StepOutput:
    """Loss of one phase on one batch."""

    loss: Tensor
    """Scalar *sum* over the items that `TrainingTask.num_items` counts; the trainer divides by the global count."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Named detached *means* over the items, for the journal."""
    counts: dict[str, Tensor] = field(default_factory=dict)
    """Number of values behind a mean in `terms`, for those that are not means over the items of the loss."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Named detached sums over the batch. The trainer adds them up over all micro-batches and processes of a step for
    `TrainingTask.update_statistics` and `TrainingTask.summary`."""
    carry: dict[str, Tensor] = field(default_factory=dict)
    """Detached tensors that the next phase of the same step receives."""


class TrainingTask(nn.Module, ABC):
    """A module that owns everything one stage trains, and computes its loss.

    Randomness that concerns a clip is drawn from its seed (genvid.noise), never from global state: losses are then
    the same however a global batch is split over processes. Networks that are used but not trained are held in
    `genvid.frozen.Frozen`.
    """

    phases: ClassVar[tuple[str, ...]] = ("model",)
    """One optimizer each, in the order in which they run."""

    @abstractmethod
    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        """Loss of `phase`. `step` counts finished optimizer steps."""

    @abstractmethod
    def exportable(self) -> Model:
        """The part that users load; the moving average tracks its parameters."""

    def update_statistics(self, phase: str, step: int, sums: dict[str, Tensor]) -> None:
        """Update running statistics with the `StepOutput.sums` of a whole step; called once, after its gradients.

        Every forward pass of a step uses the statistics of earlier steps: losses and weights do not depend on how a
        global batch is split into micro-batches and processes.
        """

    def summary(self, phase: str, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Journal terms that are not means but functions of the `StepOutput.sums` of a whole step."""
        return {}

    def prefix(self, phase: str) -> str:
        """Beginning of the journal names of a phase; empty in a task of one phase."""
        return "" if len(self.phases) == 1 else f"{phase}/"

    def phases_at(self, step: int) -> tuple[str, ...]:
        """The phases that run in this step."""
        return self.phases

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """Parameters that `phase` optimizes."""
        return (p for p in self.parameters() if p.requires_grad)

    def matrices(self) -> set[Tensor]:
        """Weights that Muon may train, where it is asked for: of linear layers."""
        return {layer.weight for layer in self.modules() if isinstance(layer, nn.Linear)}

    def layers(self) -> Iterable[nn.Module]:
        """The layers of which trained networks are stacks: FSDP2 gathers one at a time, and
        `train.activation_checkpointing` keeps only their inputs for the backward pass."""
        return ()

    def use_compiler(self, mode: str | None) -> None:
        """Hand to torch.compile what gains by it; called once, on the device, when `train.compile` is set.

        By itself, layer by layer. `mode` is torch.compile's for a whole step: CUDA graphs keep gradients in memory of
        their own, so they are asked for where a step is one micro-batch.
        """
        self.compile_layers()

    def compile_layers(self) -> None:
        """The same where FSDP2 or DeepSpeed come between the layers: all share one compilation."""
        for layer in self.layers():
            layer.compile()

    def num_items(self, batch: Batch) -> Tensor:
        """How many items the loss sums over (clips, or target tokens): a scalar tensor."""
        return torch.tensor(len(batch["seed"]))
