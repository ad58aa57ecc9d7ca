"""Draft heads: a small network beside an autoregressive model, which guesses the next codes of a block.

The model verifies the guesses, several in one pass, so the samples keep its distribution
(genvid.generation.engine.speculative). Heads are applied one after another, each with the code guessed before it, as in
multi-token prediction (arXiv 2404.19737) and Hydra (arXiv 2402.05109); the output layer is that of the model. They are
trained on the model's distributions in place of codes (DistillSpec, arXiv 2310.08461): these decide what is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from genvid.ar.row_model import RowModel
from genvid.ar.rows import IGNORED
from genvid.batch import Batch
from genvid.checkpoint import Model
from genvid.frozen import Frozen
from genvid.provenance import Origin
from genvid.train.task import StepOutput, TrainingTask


@dataclass(frozen=True)
class DraftConfig:
    """Shape of the heads."""

    IMPLIED: ClassVar[Mapping[str, Any]] = {"depth": 0}

    width: int
    """That of the model."""
    heads: int = 4
    """Codes guessed at a time."""
    depth: int = 1
    """Residual layers of each head."""

    def __post_init__(self) -> None:
        if min(self.width, self.heads) < 1 or self.depth < 0:
            raise ValueError(
                f"draft heads have a width and a number of at least 1 and a depth of at least 0, got {self}"
            )


class DraftHeads(Model):
    """A state of the model and the token drawn from it -> the states of the codes that follow that token."""

    model_type: ClassVar[str] = "draft_heads"
    config_type: ClassVar[type] = DraftConfig
    config: DraftConfig

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config)
        width = config.width
        self.state_norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(config.heads))
        self.token_norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(config.heads))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(config.heads)
        )
        self.residual_layers = nn.ModuleList(
            nn.ModuleList(_residual_layer(width) for _ in range(config.depth)) for _ in range(config.heads)
        )

    def following(self, head: int, states: Tensor, embedded: Tensor) -> Tensor:
        """(..., width) states, of the model (normed) or of the head before, and embeddings of the next tokens -> the
        states of the tokens after those."""
        both = torch.cat([self.state_norms[head](states), self.token_norms[head](embedded)], -1)
        following = self.layers[head](both)
        for layer in cast(nn.ModuleList, self.residual_layers[head]):
            following = following + layer(following)
        return cast(Tensor, following)


def _residual_layer(width: int) -> nn.Module:
    return nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


class DraftTask(TrainingTask):
    """Batches of `genvid.ar.rows.PackedRows` -> summed cross entropy of all heads with the model's distributions of the
    codes that they may guess: those of the block of the token before them. The model stays as it is."""

    def __init__(self, model: RowModel, heads: DraftHeads) -> None:
        super().__init__()
        if model.layout.framing != "length":
            raise ValueError('draft heads need a model of "length" framing, whose blocks begin with their lengths')
        self.heads = heads
        self.model = Frozen(model.eval().requires_grad_(False))
        heads.origin = Origin({"model": model.fingerprint}) if model.fingerprint else heads.origin

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        model, tokens = self.model.network, batch["tokens"]
        with torch.no_grad():
            states = model.packed_states(tokens, batch["starts"][0])
            wanted = self._code_logits(states)
            embedded = model.input_embeddings[tokens]
        loss, total = torch.zeros((), device=tokens.device), tokens.new_zeros(())
        terms: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for head, usable in enumerate(guessed_places(model, batch, self.heads.config.heads)):
            states = self.heads.following(head, states, embedded.roll(-1 - head, 1))
            p = wanted.roll(-1 - head, 1)[usable].softmax(-1)
            q = self._code_logits(states[usable]).log_softmax(-1)
            name, count = f"accepted_{head + 1}", usable.sum()
            loss, total = loss - (p * q).sum(), total + count
            terms[name] = torch.minimum(p, q.detach().exp()).sum() / count.clamp(min=1)
            counts[name] = count
        return StepOutput(loss, {"nll_per_guess": loss.detach() / total.clamp(min=1), **terms}, counts)

    def _code_logits(self, states: Tensor) -> Tensor:
        model = self.model.network
        return model.logits(states)[..., : model.layout.codebook_size].float()

    def exportable(self) -> DraftHeads:
        return self.heads

    def num_items(self, batch: Batch) -> Tensor:
        """Guesses, those of every head."""
        heads = self.heads.config.heads
        return torch.stack([usable.sum() for usable in guessed_places(self.model.network, batch, heads)]).sum()


def guessed_places(model: RowModel, batch: Batch, heads: int) -> list[Tensor]:
    """A packed batch -> for each head the (1, N) places from whose states it guesses.

    Head h guesses the code h + 2 places on, if that and all codes between belong to the block of the next token.
    """
    targets = batch["targets"]
    usable, found = targets != IGNORED, []
    for ahead in range(1, heads + 1):
        wanted = targets.roll(-ahead, 1)
        usable = usable & (wanted != IGNORED) & (wanted < model.layout.codebook_size)
        usable[:, -ahead:] = False
        found.append(usable)
    return found
