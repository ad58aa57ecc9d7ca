"""Training-time prior: a loss that makes codes predictable from the codes before them (LARP, arXiv 2410.21264).

A small causal transformer reads the continuous code vectors, through which gradients reach the encoder, and predicts
the next code by cosine with the codebook. Two departures from the published code. It samples replacement codes from
its own nearly uniform prediction; here a stated share of the context is replaced by uniformly random codes, in one pass
instead of two. Its temperature is 1, at which a perfect predictor has a cross entropy of 8.04 nats of at most 9.01;
here it is a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvid import noise
from genvid.tokenizer.adaptok.attention import causal_attention
from genvid.tokenizer.layers import StackConfig, initialise, learned_table
from genvid.tokenizer.quantizer import Quantized, Quantizer


@dataclass(frozen=True)
class PriorConfig:
    transformer: StackConfig = field(default_factory=lambda: StackConfig(384, 12, 6))
    weight: float = 0.06
    temperature: float = 0.1
    context_noise: float = 0.5
    """The share of a clip's context replaced by random codes is drawn uniformly from [0, context_noise]."""

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.weight < 0 or not 0 <= self.context_noise <= 1:
            raise ValueError(
                "the temperature of a prior is above 0, its weight at least 0 and its context_noise in [0, 1], "
                f"got {self}"
            )


class TokenPrior(nn.Module):
    """Next-code cross entropy over the kept tokens of a clip."""

    def __init__(self, config: PriorConfig, *, code_dim: int, num_tokens: int) -> None:
        super().__init__()
        self.config = config
        width = config.transformer.width
        self.read = nn.Linear(code_dim, width)
        self.blocks = config.transformer.build()
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, code_dim)
        initialise(self)
        self.positions = learned_table(num_tokens, width)

    def forward(self, quantizer: Quantizer, quantized: Quantized, keep: Tensor, seeds: Tensor) -> Tensor:
        """Quantized tokens, (B, G, L) keep mask, (B,) seeds -> (B,) mean cross entropy per predicted token, nats."""
        keep = keep.flatten(1)
        # Kept tokens move to the front in their order, with their original positions.
        order = (~keep).byte().argsort(dim=1, stable=True)
        keep = keep.gather(1, order)
        codes = quantized.codes.flatten(1).gather(1, order)
        vectors = quantized.vectors.flatten(1, 2)
        vectors = vectors.gather(1, order[..., None].expand(-1, -1, vectors.shape[-1]))
        x = self.read(self._disturb(quantizer, vectors, seeds)) + self.positions[order]
        for block in self.blocks:
            x = block(x, causal_attention)
        predicted = F.normalize(self.predict(self.norm(x[:, :-1])).float(), dim=-1)
        codebook = F.normalize(quantizer.codebook().detach().float(), dim=-1)
        logits = predicted @ codebook.T / self.config.temperature
        loss = F.cross_entropy(logits.transpose(1, 2), codes[:, 1:], reduction="none")
        is_target = keep[:, 1:]
        return (loss * is_target).sum(1) / is_target.sum(1).clamp(min=1)

    def _disturb(self, quantizer: Quantizer, vectors: Tensor, seeds: Tensor) -> Tensor:
        share = self.config.context_noise * noise.uniform(seeds, "prior noise share", 1)
        replaced = noise.uniform(seeds, "prior noise", vectors.shape[1]) < share
        codes = noise.uniform(seeds, "prior noise code", vectors.shape[1]) * quantizer.codebook_size
        return torch.where(replaced[..., None], quantizer.lookup(codes.long()).detach().to(vectors.dtype), vectors)
