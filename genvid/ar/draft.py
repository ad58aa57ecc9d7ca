"""Draft heads: a small network beside an autoregressive model, which guesses the next codes of a block.

The model verifies the guesses, several in one pass, so the samples keep its distribution
(genvid.generation.engine.speculative). Heads are applied one after another, each with the code guessed before it, as in
multi-token prediction (arXiv 2404.19737) and Hydra (arXiv 2402.05109); the output layer is that of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from genvid.ar.row_model import RowModel
from genvid.ar.rows import IGNORED
from genvid.ar.task import cross_entropy
from genvid.batch import Batch
from genvid.checkpoint import Model
from genvid.frozen import Frozen
from genvid.provenance import Origin
from genvid.train.task import StepOutput, TrainingTask


@dataclass(frozen=True)
class DraftConfig:
    """Shape of the heads."""

    width: int
    """That of the model."""
    heads: int = 4
    """Codes guessed at a time."""

    def __post_init__(self) -> None:
        if min(self.width, self.heads) < 1:
            raise ValueError(f"draft heads have a width and a number of at least 1, got {self}")


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

    def following(self, head: int, states: Tensor, embedded: Tensor) -> Tensor:
        """(..., width) states, of the model (normed) or of the head before, and embeddings of the next tokens -> the
        states of the tokens after those."""
        both = torch.cat([self.state_norms[head](states), self.token_norms[head](embedded)], -1)
        return cast(Tensor, self.layers[head](both))


class DraftTask(TrainingTask):
    """Batches of `genvid.ar.rows.PackedRows` -> summed cross entropy of all heads, over the codes that they may guess:
    those of the block of the token before them. The model stays as it is."""

    def __init__(self, model: RowModel, heads: DraftHeads) -> None:
        super().__init__()
        if model.layout.framing != "length":
            raise ValueError('draft heads need a model of "length" framing, whose blocks announce their lengths')
        self.heads = heads
        self.model = Frozen(model.eval().requires_grad_(False))
        heads.origin = Origin({"model": model.fingerprint}) if model.fingerprint else heads.origin

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        model, tokens = self.model.network, batch["tokens"]
        with torch.no_grad():
            states = model.packed_states(tokens, batch["starts"][0])
            embedded = model.input_embeddings[tokens]
        targets = draft_targets(model, batch, self.heads.config.heads)
        loss, total = torch.zeros((), device=tokens.device), tokens.new_zeros(())
        terms: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for head, wanted in enumerate(targets):
            states = self.heads.following(head, states, embedded.roll(-1 - head, 1))
            nll, correct = cross_entropy(model.logits(states).flatten(0, -2), wanted.flatten())
            counts[f"accuracy_{head + 1}"] = (wanted != IGNORED).sum()
            terms[f"accuracy_{head + 1}"] = correct.sum() / counts[f"accuracy_{head + 1}"].clamp(min=1)
            loss, total = loss + nll, total + counts[f"accuracy_{head + 1}"]
        return StepOutput(loss, {"nll_per_guess": loss.detach() / total.clamp(min=1), **terms}, counts)

    def exportable(self) -> DraftHeads:
        return self.heads

    def num_items(self, batch: Batch) -> Tensor:
        """Guesses, those of every head."""
        heads = self.heads.config.heads
        return torch.stack([(t != IGNORED).sum() for t in draft_targets(self.model.network, batch, heads)]).sum()


def draft_targets(model: RowModel, batch: Batch, heads: int) -> list[Tensor]:
    """A packed batch -> for each head the (1, N) codes that it guesses from the state at each place, or IGNORED.

    Head h guesses the code h + 2 places on, if that and all codes between belong to the block of the next token.
    """
    targets = batch["targets"]
    usable, found = targets != IGNORED, []
    for ahead in range(1, heads + 1):
        wanted = targets.roll(-ahead, 1)
        usable = usable & (wanted != IGNORED) & (wanted < model.layout.codebook_size)
        usable[:, -ahead:] = False
        found.append(wanted.where(usable, IGNORED))
    return found
