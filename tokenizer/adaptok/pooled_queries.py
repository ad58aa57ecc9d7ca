"""Pooled queries and carry-over: additions to the published AdapTok, on with `AdapTokConfig.pooled_queries`.

Every latent of a block covers a cell of the picture, coarse to fine (genvid.tokenizer.adaptok.pyramid).

* Encoder: a latent query starts from the mean of the patches in its cell (EVATok, arXiv 2603.12267, pools likewise).
* Decoder: a pixel query starts from the mean of the latents whose cells contain its patch. A dropped latent is
  replaced by the last kept one in its position, faded by a factor per channel and block; with a window, by one of
  so many blocks at most.
* Scorer: the novelty of a latent is its difference from both.

Symbols: B videos, G blocks, L latents of a block, P patches of a block, W channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pool_patches(patches: Tensor, cells: Tensor) -> Tensor:
    """(B, G, P, W) patches -> (B, G, L, W): the mean patch of each cell."""
    return (cells / cells.sum(1, keepdim=True).clamp(min=1e-6)).to(patches.dtype) @ patches


def pool_latents(embeddings: Tensor, keep: Tensor, cells: Tensor, fade: Tensor, window: int | None = None) -> Tensor:
    """Decoder input (B, G, L, W), of which `keep` (B, G, L) -> (B, G, P, W): the mean latent of each patch."""
    return cell_means(*fill_from_past(embeddings, keep, fade, window), cells)


def fill_from_past(embeddings: Tensor, keep: Tensor, fade: Tensor, window: int | None = None) -> tuple[Tensor, Tensor]:
    """(B, G, L, W) with dropped latents replaced by earlier ones of their positions (`carry_over`), and (B, G, L) bool:
    positions that have a latent of either kind."""
    carried, present = carry_over(embeddings, keep, fade, window)
    return torch.where(keep[..., None], embeddings, carried), keep | present


def cell_means(latents: Tensor, present: Tensor, cells: Tensor) -> Tensor:
    """(B, G, P, W): for each patch the mean of the latents (B, G, L, W) `present` (B, G, L) whose cells contain it."""
    cover = cells.to(latents.dtype) * present[..., None]
    return cover.transpose(2, 3) @ latents / cover.sum(2).clamp(min=1e-6)[..., None]


def carry_over(embeddings: Tensor, keep: Tensor, fade: Tensor, window: int | None = None) -> tuple[Tensor, Tensor]:
    """(B, G, L, W): the last kept latent of each position before each block, and (B, G, L) bool: whether there is one.

    A latent is multiplied by `fade` (W,) for every block since it was kept; zero where none was, or none in the last
    `window` blocks. `embeddings` (B, G, L, W), kept where `keep` (B, G, L).
    """
    carried, present = [torch.zeros_like(embeddings[:, 0])], [torch.zeros_like(keep[:, 0])]
    age, factor = keep.new_zeros(keep[:, 0].shape, dtype=torch.int), fade.to(embeddings.dtype)
    for block, kept in zip(embeddings[:, :-1].unbind(1), keep[:, :-1].unbind(1), strict=True):
        age = torch.where(kept, 1, age + 1)
        held = kept | present[-1]
        present.append(held if window is None else held & (age <= window))
        last = torch.where(kept[..., None], block, carried[-1])
        carried.append(factor * torch.where(present[-1][..., None], last, 0))
    return torch.stack(carried, 1), torch.stack(present, 1)


def novelty(embeddings: Tensor, carried: Tensor, coarser: Tensor) -> Tensor:
    """Scorer input (..., L, 2W): each latent minus the one `carried` over in its position, and minus the mean of the
    latents before it over the same cell (`coarser_weights`)."""
    around = coarser.to(embeddings.dtype) @ embeddings
    return torch.cat([embeddings - carried, embeddings - around], -1)
