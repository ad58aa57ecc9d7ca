"""Training the autoregressive model: next-token prediction over packed rows, every target counting the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from genvid.ar.row_model import RowModel
from genvid.ar.rows import IGNORED
from genvid.batch import Batch
from genvid.train.task import StepOutput, TrainingTask


class ARTask(TrainingTask):
    """Batches of `genvid.ar.rows.PackedRows` -> summed cross entropy."""

    def __init__(self, model: RowModel) -> None:
        super().__init__()
        self.model = model
        self._cross_entropy: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = cross_entropy

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        targets = batch["targets"]
        nll, correct = self._cross_entropy(self.logits(batch).flatten(0, -2), targets.flatten())
        counted, framing = targets != IGNORED, targets >= self.model.layout.codebook_size
        lengths = framing.sum()
        mean = nll.detach() / counted.sum()
        terms = {
            "nll_per_token": mean,
            "bits_per_token": mean / math.log(2),
            "accuracy": correct.sum() / counted.sum(),
            "length_accuracy": (correct & framing.flatten()).sum() / lengths.clamp(min=1),
        }
        return StepOutput(nll, terms, counts={"length_accuracy": lengths})

    def logits(self, batch: Batch) -> Tensor:
        """-> (1, N, num_outputs): of the id that follows each token."""
        return self.model.logits(self.model.packed_states(batch["tokens"], batch["starts"][0]))

    def exportable(self) -> RowModel:
        return self.model

    def layers(self) -> Iterable[nn.Module]:
        return cast(Iterable[nn.Module], self.model.backbone.layers)

    def compile_layers(self) -> None:
        super().compile_layers()
        self._cross_entropy = torch.compile(cross_entropy)

    def num_items(self, batch: Batch) -> Tensor:
        """Targets: each predicted block's codes and its one framing token."""
        return (batch["targets"] != IGNORED).sum()


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(N, V) logits of any precision, (N,) targets or IGNORED -> summed cross entropy, and (N,) which were likeliest.

    Compiled, it reads the logits as they are; nothing of their size is made in float32.
    """
    nll = functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    return nll, logits.argmax(-1) == targets
