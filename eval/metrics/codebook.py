"""How much of a codebook is used."""

from __future__ import annotations

import torch
from torch import Tensor


def codebook_usage(codes: Tensor, codebook_size: int) -> dict[str, float]:
    """Kept codes (N,) -> `codebook used`, a fraction, and `codebook perplexity`, from 1 to `codebook_size`."""
    if not len(codes):
        raise ValueError("no codes: usage of a codebook needs at least one kept token")
    probability = torch.bincount(codes, minlength=codebook_size).double() / len(codes)
    entropy = -torch.special.xlogy(probability, probability).sum()
    return {
        "codebook used": float((probability > 0).double().mean()),
        "codebook perplexity": float(entropy.exp()),
    }
