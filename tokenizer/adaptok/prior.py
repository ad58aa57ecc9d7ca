"""Training-time prior: a loss that makes codes predictable from the codes before them (LARP, arXiv 2410.21264).

A small causal transformer reads the continuous code vectors, through which gradients reach the encoder, and predicts
the next code by cosine with the codebook. Two departures from the published code. It samples replacement codes from
its own nearly uniform prediction; here a stated share of the context is replaced by uniformly random codes, in one pass
instead of two. Its temperature is 1, at which a perfect predictor has a cross entropy of 8.04 nats of at most 9.01;
here it is a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvid import noise
from genvid.tokenizer.adaptok.attention import causal_attention
from genvid.tokenizer.adaptok.packed import causal_spans
from genvid.tokenizer.layers import Attend, StackConfig, initialise, learned_table
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

    def forward(
        self, quantizer: Quantizer, quantized: Quantized, keep: Tensor, seeds: Tensor, most_kept: int | None = None
    ) -> Tensor:
        """Quantized tokens, (B, G, L) keep mask, (B,) seeds -> (B,) mean cross entropy per predicted token, nats.

        The kept tokens of every clip are a row; with `most_kept`, which `keep` does not exceed, one row of so many
        tokens has those of all clips.
        """
        keep = keep.flatten(1)
        rows = _rows(keep) if most_kept is None else _one_row(keep, most_kept)
        codes = quantized.codes.flatten()[rows.places]
        vectors = quantized.vectors.flatten(0, 2)[rows.places]
        vectors = self._disturb(quantizer, vectors, seeds, keep.shape[1], rows.slots)
        x = self.read(vectors) + self.positions[rows.places % keep.shape[1]]
        for block in self.blocks:
            x = block(x, rows.attend)
        predicted = F.normalize(self.predict(self.norm(x[:, :-1])).float(), dim=-1)
        codebook = F.normalize(quantizer.codebook().detach().float(), dim=-1)
        logits = predicted @ codebook.T / self.config.temperature
        loss = F.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten(), reduction="none")
        clip = rows.slots // keep.shape[1]
        is_target = rows.kept[:, 1:] & (clip[:, 1:] == clip[:, :-1])
        loss = torch.where(is_target.flatten(), loss, 0)
        losses = loss.new_zeros(keep.numel()).scatter_add(0, rows.slots[:, 1:].flatten(), loss)
        return losses.view_as(keep).sum(1) / (keep.sum(1) - 1).clamp(min=1)

    def _disturb(self, quantizer: Quantizer, vectors: Tensor, seeds: Tensor, count: int, slots: Tensor) -> Tensor:
        """Vectors of which some are replaced by random codes, drawn for each of `count` slots of a clip."""
        share = self.config.context_noise * noise.uniform(seeds, "prior noise share", 1)
        replaced = noise.uniform(seeds, "prior noise", count) < share
        codes = (noise.uniform(seeds, "prior noise code", count) * quantizer.codebook_size).long()
        others = quantizer.lookup(codes.flatten()[slots]).detach().to(vectors.dtype)
        return torch.where(replaced.flatten()[slots][..., None], others, vectors)


class _Rows(NamedTuple):
    """Kept tokens (B, T) in R rows of S."""

    places: Tensor
    """(R, S) of each token in (B, T)."""
    kept: Tensor
    """(R, S): other tokens only fill the rows."""
    slots: Tensor
    """(R, S) clip, and number among the kept tokens of the clip, as a place in (B, T)."""
    attend: Attend


def _rows(keep: Tensor) -> _Rows:
    """A row for each clip, its kept tokens in front in their order."""
    order = (~keep).byte().argsort(dim=1, stable=True)
    slots = torch.arange(keep.numel(), device=keep.device).view_as(keep)
    return _Rows(slots[:, :1] + order, keep.gather(1, order), slots, causal_attention)


def _one_row(keep: Tensor, most_kept: int) -> _Rows:
    """The kept tokens of one clip after those of the other."""
    places = torch.nonzero_static(keep.flatten(), size=most_kept)[:, 0]
    kept, places, count = places >= 0, places.clamp(min=0), keep.shape[1]
    clip, number = places // count, torch.arange(most_kept, device=keep.device)
    firsts = keep.sum(1).cumsum(0) - keep.sum(1)
    slots = (clip * count + number - firsts[clip]).clamp(max=keep.numel() - 1)
    return _Rows(places[None], kept[None], slots[None], causal_spans(keep.sum(1), count, most_kept).attend)
