"""Training the autoregressive model: next-token prediction over ragged rows, every target counting the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from genvid import noise
from genvid.ar.model import RowModel
from genvid.sequence import TokenSequence
from genvid.tokens import BlockTokens
from genvid.train.task import Batch, StepOutput, TrainingTask


@dataclass(frozen=True)
class ARTaskConfig:
    """How rows are made of cached tokens."""

    class_dropout: float = 0.1
    """Share of clips whose class is not told, so that guidance can be used."""
    pad_multiple: int = 1
    """Round the width of a batch up to a multiple, so that a compiled model sees few shapes."""

    def __post_init__(self) -> None:
        if not 0 <= self.class_dropout <= 1 or self.pad_multiple < 1:
            raise ValueError(f"class_dropout is in [0, 1] and pad_multiple at least 1, got {self}")


class ARTask(TrainingTask):
    """Batches {"codes": (B, G, L), "lengths": (B, G), "label": (B,), "seed": (B,)} -> summed cross entropy."""

    def __init__(self, model: RowModel, config: ARTaskConfig) -> None:
        super().__init__()
        given, blocks = model.config.context_blocks, model.layout.num_blocks
        if given >= blocks:
            raise ValueError(f"context_blocks {given} leaves nothing to predict of {blocks} blocks")
        self.model = model
        self.config = config

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        rows = self._rows(batch)
        logits = self.model(rows.tokens[:, :-1]).float()
        target, counted = rows.tokens[:, 1:], rows.is_target[:, 1:]
        nll = functional.cross_entropy(
            logits.flatten(0, 1), target.where(counted, -100).flatten(), reduction="none"
        ).view_as(target)
        correct = (logits.argmax(-1) == target) & counted
        framing = counted & (target >= self.model.layout.codebook_size)
        mean = nll.detach().sum() / counted.sum()
        terms = {
            "nll_per_token": mean,
            "bits_per_token": mean / math.log(2),
            "accuracy": correct.sum() / counted.sum(),
            "length_accuracy": (correct & framing).sum() / framing.sum(),
        }
        return StepOutput(nll.sum(), terms)

    def exportable(self) -> RowModel:
        return self.model

    def use_compiler(self, micro_batches: int) -> None:
        """Layer by layer: all share one compilation. `pad_multiple` keeps the shapes few."""
        for module in self.model.modules():
            if isinstance(module, LlamaDecoderLayer):
                module.compile()

    def num_items(self, batch: Batch) -> Tensor:
        """Targets: each predicted block's codes and its one framing token."""
        return (batch["lengths"][:, self.model.config.context_blocks :] + 1).sum()

    def _rows(self, batch: Batch) -> TokenSequence:
        lengths, codes = batch["lengths"], batch["codes"].long()
        keep = torch.arange(codes.shape[-1], device=codes.device) < lengths[..., None]
        given = self.model.config.context_blocks
        if given:
            prefix = self.model.layout.frame_prediction_prefix(BlockTokens(keep[:, :given], codes[:, :given]))
        else:
            prefix = self._class_prefix(batch)
        rows = self.model.layout.pack(BlockTokens(keep[:, given:], codes[:, given:]), prefix)
        return self._widen(rows)

    def _class_prefix(self, batch: Batch) -> Tensor:
        layout, seeds = self.model.layout, batch["seed"]
        untold = layout.null_prefix(len(seeds), seeds.device)
        if not layout.num_classes:
            return untold
        told = layout.class_prefix(batch["label"])
        if not self.training:
            return told
        dropped = noise.uniform(seeds, "class_dropout") < self.config.class_dropout
        return untold.where(dropped[:, None], told)

    def _widen(self, rows: TokenSequence) -> TokenSequence:
        """Pad the inputs (all tokens but the last) to a multiple, as far as the model has positions."""
        inputs, multiple = rows.tokens.shape[1] - 1, self.config.pad_multiple
        more = max(0, min(-(-inputs // multiple) * multiple, self.model.max_positions) - inputs)
        tokens = functional.pad(rows.tokens, (0, more), value=self.model.layout.pad_id)
        return TokenSequence(tokens, functional.pad(rows.is_target, (0, more)))
