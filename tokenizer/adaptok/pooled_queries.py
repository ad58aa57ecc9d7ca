"""Pooled queries and carry-over: additions to the published AdapTok, on with `AdapTokConfig.pooled_queries`.

Every latent of a block covers a cell of the picture, coarse to fine: the first latent all of it, the next four its
quarters, and so on. The cells of a last, incomplete level are spread over the picture, so that every prefix of the
latents covers all of it.

* Encoder: a latent query starts from the mean of the patches in its cell (EVATok, arXiv 2603.12267, pools likewise).
* Decoder: a pixel query starts from the mean of the latents whose cells contain its patch. A dropped latent is
  replaced by the last kept one in its position, faded by a factor per channel and block.
* Scorer: the novelty of a latent is its difference from both.

Symbols: B videos, G blocks, L latents of a block, P patches of a block, W channels.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor


def pyramid_cells(rows: int, columns: int, capacity: int) -> Tensor:
    """(L, P) float: 1 where patch p (row-major) lies in the cell of latent l, else 0."""
    row, column = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    levels = []
    level = count = 0
    while count < capacity:
        parts = 2**level
        cell = (row * parts // rows) * parts + column * parts // columns
        order = _spread(level)
        levels.append((cell.flatten() == order[:, None]).float())
        count += len(order)
        level += 1
    return torch.cat(levels)[:capacity]


def coarser_weights(cells: Tensor) -> Tensor:
    """(L, P) cells -> (L, L): row l weights the latents before l to their mean over the cell of l."""
    before = cells.cumsum(0) - cells
    share = cells / cells.sum(1, keepdim=True).clamp(min=1) / before.clamp(min=1)
    return (share @ cells.T).tril(-1)


def pool_patches(patches: Tensor, cells: Tensor) -> Tensor:
    """(B, G, P, W) patches -> (B, G, L, W): the mean patch of each cell."""
    return (cells / cells.sum(1, keepdim=True).clamp(min=1)).to(patches.dtype) @ patches


def pool_latents(embeddings: Tensor, keep: Tensor, cells: Tensor, fade: Tensor) -> Tensor:
    """Decoder input (B, G, L, W), of which `keep` (B, G, L) -> (B, G, P, W): the mean latent of each patch."""
    return cell_means(*fill_from_past(embeddings, keep, fade), cells)


def fill_from_past(embeddings: Tensor, keep: Tensor, fade: Tensor) -> tuple[Tensor, Tensor]:
    """(B, G, L, W) with dropped latents replaced by what is carried over in their positions, and (B, G, L) bool:
    positions of which some latent was kept so far."""
    filled = torch.where(keep[..., None], embeddings, carry_over(embeddings, keep, fade)[:, :-1])
    return filled, torch.stack(list(accumulate(keep.unbind(1), torch.logical_or)), 1)


def cell_means(latents: Tensor, present: Tensor, cells: Tensor) -> Tensor:
    """(B, G, P, W): for each patch the mean of the latents (B, G, L, W) `present` (B, G, L) whose cells contain it."""
    cover = cells.to(latents.dtype) * present[..., None]
    return cover.transpose(2, 3) @ latents / cover.sum(2).clamp(min=1)[..., None]


def carry_over(embeddings: Tensor, keep: Tensor, fade: Tensor, start: Tensor | None = None) -> Tensor:
    """(B, G + 1, L, W): the last kept latent of each position before each block and after the last one.

    A latent is multiplied by `fade` (W,) for every block since it was kept; zero where none was. `embeddings`
    (B, G, L, W), kept where `keep` (B, G, L); `start` (B, L, W): the carry-over of earlier blocks.
    """
    carried = [torch.zeros_like(embeddings[:, 0]) if start is None else start]
    factor = fade.to(embeddings.dtype)
    for block, kept in zip(embeddings.unbind(1), keep.unbind(1), strict=True):
        carried.append(factor * torch.where(kept[..., None], block, carried[-1]))
    return torch.stack(carried, 1)


def novelty(embeddings: Tensor, carried: Tensor, coarser: Tensor) -> Tensor:
    """Scorer input (..., L, 2W): each latent minus the one `carried` over in its position, and minus the mean of the
    latents before it over the same cell (`coarser_weights`)."""
    around = coarser.to(embeddings.dtype) @ embeddings
    return torch.cat([embeddings - carried, embeddings - around], -1)


def _spread(level: int) -> Tensor:
    """The 4^level cells of a level, row-major numbers, ordered so that any first few of them lie far apart."""
    corners = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0]])
    places = torch.zeros(1, 2, dtype=torch.long)
    for digit in range(level):
        # Later digits of the order move by larger steps first: neighbours in the order are distant in the picture.
        places = (2**digit * corners[None] + places[:, None]).flatten(0, 1)
    return (places[:, 0] << level) + places[:, 1]
