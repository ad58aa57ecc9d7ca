"""Restart of codes that fell out of use: each takes the direction of a latent of the present batch.

Replacing unused codes by encoder outputs: Jukebox (arXiv 2005.00341).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from genvid import noise
from genvid.tokenizer.quantizer import Quantized, VectorQuantizer
from genvid.train.sharding import gather, local_part, split

_CANDIDATES = 4
"""Tokens of a clip whose latents may replace codes in one step."""


@dataclass(frozen=True)
class RestartConfig:
    """When a code counts as unused."""

    threshold: float = 0.03
    """Share of the kept tokens below which a code is replaced, in units of an equal share (1 / codebook size)."""
    decay: float = 0.99
    """Of the running shares, per step. A new code has about log(threshold) / log(decay) steps to come into use."""

    def __post_init__(self) -> None:
        if not (0 < self.threshold < 1 and 0 < self.decay < 1):
            raise ValueError(f"restart.threshold and restart.decay must lie between 0 and 1, got {self}")


class CodeRestart(nn.Module):
    """Running shares of the codes, and the replacement of those below the threshold.

    A clip offers the latents of a few of its kept tokens, each to one code; tokens and codes are drawn from the clip's
    seed, so the sums over the global batch, and the codebook, do not depend on the number of processes. Shapes are
    fixed and nothing waits for the device. AdamW's moments of a replaced row stay: the gradients of an unused code are
    zero, and so, after some steps, are its moments.
    """

    usage: Tensor

    def __init__(self, config: RestartConfig, codebook_size: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("usage", torch.ones(codebook_size))

    @torch.no_grad()
    def sums(self, quantized: Quantized, keep: Tensor, seeds: Tensor) -> Tensor:
        """(codebook size, 1 + code_dim) float64: number and sum of the latent directions offered to each code.

        Several directions offered to one code give their mean direction.
        """
        order = torch.where(keep.flatten(1), noise.uniform(seeds, "offered tokens", *keep.shape[1:]).flatten(1), -1.0)
        tokens = order.topk(min(_CANDIDATES, order.shape[1]), 1).indices
        kept = keep.flatten(1).gather(1, tokens)[..., None].double()
        latents = quantized.latents.flatten(1, 2)
        offered = normalize(latents.gather(1, tokens[..., None].expand(-1, -1, latents.shape[-1])), dim=-1).double()
        codes = (noise.uniform(seeds, "restarted codes", tokens.shape[1]) * len(self.usage)).long()
        rows = torch.cat([kept, offered * kept], -1).flatten(0, 1)
        return rows.new_zeros(len(self.usage), rows.shape[-1]).index_add_(0, codes.flatten(), rows)

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """Average the `code_counts` (codebook size,) of one step into the running shares."""
        shares = counts / counts.sum() * len(counts)
        self.usage.lerp_(shares.to(self.usage), 1 - self.config.decay)

    @torch.no_grad()
    def replace(self, quantizer: VectorQuantizer, sums: Tensor, skip: Tensor) -> Tensor:
        """Replace the unused codes to which a latent was offered, none where `skip` () is not 0.

        Returns the replaced codes as (codebook size,) bool. A row of the codebook keeps its norm, with which the
        learning rate of its direction scales. All processes must call it.
        """
        offered = (sums[:, 0] > 0) & sums.isfinite().all(1)
        replaced = (self.usage < self.config.threshold) & offered & (skip == 0)
        held = local_part(quantizer.embedding)
        codebook = gather(held, quantizer.embedding)
        directions = normalize(sums[:, 1:], dim=-1).to(codebook)
        restarted = directions * codebook.norm(dim=-1, keepdim=True)
        held.copy_(split(torch.where(replaced[:, None], restarted, codebook), quantizer.embedding))
        self.usage.masked_fill_(replaced, 1.0)
        return replaced
