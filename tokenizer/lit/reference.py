"""References: the last kept latent of each position, which dropped ones are compared with and filled from.

Copying it forward is the simplest filler, interpolating to the next kept one the simplest that looks ahead. A sender
that looks ahead replaces a kept latent by the mean of the interval that it is copied over (`MeanTokens`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Reference:
    """The cache C_sel of a stream: the last kept latent of every position, and its age."""

    latents: Tensor
    """(B, L, C)."""
    age: Tensor
    """(B, L) int64: blocks since it was kept; 0 for one of the last block."""


def last_kept(latents: Tensor, keep: Tensor, start: Reference | None = None) -> tuple[Tensor, Tensor]:
    """Copy-forward: (B, G, L, C) and (B, G, L) -> the latents with dropped ones replaced, and (B, G, L) their ages.

    A kept latent is its own reference, of age 0. `start`: references from before a chunk of a stream; without it the
    first block must be complete (`LIT.check` refuses others).
    """
    blocks = torch.arange(keep.shape[1], device=keep.device)[:, None]
    source = torch.where(keep, blocks, -1).cummax(1).values
    filled = latents.gather(1, source.clamp(min=0)[..., None].expand_as(latents))
    age = blocks - source
    if start is not None:
        before = source < 0
        filled = torch.where(before[..., None], start.latents[:, None].to(latents.dtype), filled)
        age = torch.where(before, start.age[:, None] + blocks + 1, age)
    return filled, age


def last_reference(latents: Tensor, keep: Tensor, start: Reference | None) -> Reference:
    """The reference after these blocks of a stream, copied out of their memory."""
    filled, age = last_kept(latents, keep, start)
    return Reference(filled[:, -1].clone(), age[:, -1].clone())


def interval_means(latents: Tensor, keep: Tensor) -> Tensor:
    """(B, G, L, C) and (B, G, L) -> the latents, kept ones replaced by the mean over their interval. A kept latent
    followed by another is unchanged to the bit."""
    ends = F.pad(_next_kept_at(keep)[:, 1:], (0, 0, 0, 1), value=keep.shape[1])
    lengths = ends - torch.arange(keep.shape[1], device=keep.device)[:, None]
    sums = F.pad(latents.double().cumsum(1), (0, 0, 0, 0, 1, 0))
    means = (sums.gather(1, ends[..., None].expand_as(latents)) - sums[:, :-1]) / lengths[..., None]
    return torch.where((lengths > 1)[..., None], means.to(latents.dtype), latents)


def next_kept(latents: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The next kept latents (B, G, L, C) and the blocks until then (B, G, L).

    A kept latent is its own. Where none follows: the last kept one, and 0.
    """
    count = keep.shape[1]
    blocks = torch.arange(count, device=keep.device)[:, None]
    last = torch.where(keep, blocks, -1).amax(1, keepdim=True).clamp(min=0)
    source = _next_kept_at(keep)
    source = torch.where(source == count, last, source)
    return latents.gather(1, source[..., None].expand_as(latents)), (source - blocks).clamp(min=0)


def _next_kept_at(keep: Tensor) -> Tensor:
    """(B, G, L) -> the block, from each on, in which the position is kept next; G where it is not."""
    blocks = torch.arange(keep.shape[1], device=keep.device)[:, None]
    return torch.where(keep, blocks, keep.shape[1]).flip(1).cummin(1).values.flip(1)


def interpolate(latents: Tensor, keep: Tensor) -> Tensor:
    """Linear interpolation in time between kept latents, the last one held: (B, G, L, C). Looks ahead, so no stream."""
    before, age = last_kept(latents, keep)
    after, ahead = next_kept(latents, keep)
    share = (age / (age + ahead).clamp(min=1))[..., None].to(latents.dtype)
    return torch.where(keep[..., None], latents, before + share * (after - before))
