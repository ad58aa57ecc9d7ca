"""How much of a codebook is used by the tokens that were kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from genvid.tokens import BlockTokens


class CodebookUsage(Metric):  # type: ignore[misc]
    """Histogram of kept codes -> used fraction and perplexity."""

    full_state_update = False
    counts: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(codebook_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, tokens: BlockTokens) -> None:
        """Count the kept codes of a batch of clips."""
        if tokens.codes is None:
            raise ValueError("continuous tokens have no codebook to measure")
        self.counts += torch.bincount(tokens.codes[tokens.keep], minlength=len(self.counts))

    def compute(self) -> dict[str, Tensor]:
        """`codebook used`, a fraction, and `codebook perplexity`, from 1 to the codebook size; float64."""
        if not self.counts.any():
            raise ValueError("the codebook usage of no tokens: call update first")
        probability = self.counts.double() / self.counts.sum()
        entropy = -torch.special.xlogy(probability, probability).sum()
        return {"codebook used": (self.counts > 0).double().mean(), "codebook perplexity": entropy.exp()}
