"""A stage of training: its loss on a batch, its phases, its layers, and the model that it exports."""

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
    """Named detached sums over the batch, totalled over all micro-batches and processes of a step for
    `TrainingTask.update_statistics` and `TrainingTask.summary`."""
    carry: dict[str, Tensor] = field(default_factory=dict)
    """Detached tensors that the next phase of the same step receives."""


class TrainingTask(nn.Module, ABC):
    """A module that holds everything one stage trains, and computes its loss.

    Randomness of a clip is drawn from its seed (genvid.noise), never from global state: losses do not depend on how a
    global batch is split over processes. Networks that are used but not trained are held in
    `genvid.frozen.Frozen`.
    """

    phases: ClassVar[tuple[str, ...]] = ("model",)
    """One optimizer each, in the order in which they run."""
    compiled_across_layers: ClassVar[bool] = False
    """Whether parts that `use_compiler` compiles span layers: FSDP2 then gathers all weights at once."""

    @abstractmethod
    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        """Loss of `phase`. `step` counts finished optimizer steps."""

    @abstractmethod
    def exportable(self) -> Model:
        """The model that users load; the moving average is of its weights."""

    def update_statistics(self, phase: str, step: int, sums: dict[str, Tensor]) -> None:
        """Update running statistics with the `StepOutput.sums` of a complete step; called once, after its gradients.

        Every forward pass of a step uses the statistics of earlier steps: losses and weights do not depend on how a
        global batch is split into micro-batches and processes.
        """

    @property
    def replaces_weights(self) -> bool:
        """Whether `replace_weights` changes weights."""
        return False

    def replace_weights(self, phase: str, sums: dict[str, Tensor], skip: Tensor) -> dict[str, Tensor]:
        """Replace weights that gradients no longer reach; called once after the optimizer step of a phase.

        `skip` () is not 0 in a skipped step, which changes nothing. Returns the replaced rows: name of a weight in
        `exportable()` -> (rows,) bool. The moving average of these rows starts again from the new weights.
        """
        return {}

    def summary(self, phase: str, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Journal terms that are functions of the `StepOutput.sums` of a complete step, not means."""
        return {}

    def prefix(self, phase: str) -> str:
        """Beginning of the journal names of a phase; empty in a task of one phase."""
        return "" if len(self.phases) == 1 else f"{phase}/"

    def phases_at(self, step: int) -> tuple[str, ...]:
        """The phases that run in this step."""
        return self.phases

    def phases_by(self, step: int) -> tuple[str, ...]:
        """The phases that have run by the end of this step."""
        return self.phases

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """Parameters that `phase` optimizes."""
        return (p for p in self.parameters() if p.requires_grad)

    def matrices(self) -> set[Tensor]:
        """Weights that Muon trains if `muon` is set: those of linear layers."""
        return {layer.weight for layer in self.modules() if isinstance(layer, nn.Linear)}

    def layers(self) -> Iterable[nn.Module]:
        """The layers of which trained networks are stacks: FSDP2 gathers one at a time, and
        `train.activation_checkpointing` keeps only their inputs for the backward pass."""
        return ()

    def use_compiler(self, mode: str | None) -> None:
        """Compile the parts that gain by it; called once, on the device, when `train.compile` is set.

        By default every layer by itself. `mode` is torch.compile's mode for a complete step: "reduce-overhead" (CUDA
        graphs, whose results the next replay overwrites) where `genvid.train.accelerator.replays_graphs`.
        """
        self.compile_layers()

    def compile_layers(self) -> None:
        """Compile layer by layer, the only way where FSDP2 or DeepSpeed gathers layers; they share one compilation."""
        for layer in self.layers():
            layer.compile()

    def num_items(self, batch: Batch) -> Tensor:
        """() number of items that the loss sums over: clips, or target tokens."""
        return torch.tensor(len(batch["seed"]))
