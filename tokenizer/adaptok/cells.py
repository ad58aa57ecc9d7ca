"""Cells: which part of a block's picture each latent stands for, coarse to fine.

The first latent stands for the whole picture, the next four for its quarters, and so on; a last level that does not
fit whole is spread evenly. Any prefix of the latents therefore covers the picture, as tail drop wants it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cells(rows: int, columns: int, capacity: int) -> Tensor:
    """(L, P) float: 1 where patch p (row-major) lies in the cell of latent l."""
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


def coarser(cover: Tensor) -> Tensor:
    """(L, P) cells -> (L, L) weights with which the latents before each one make up the mean in its cell."""
    before = cover.cumsum(0) - cover
    share = cover / cover.sum(1, keepdim=True).clamp(min=1) / before.clamp(min=1)
    return (share @ cover.T).tril(-1)


def _spread(level: int) -> Tensor:
    """The 4^level cells of a level, row-major numbers, ordered so that any first few of them lie far apart."""
    corners = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0]])
    places = torch.zeros(1, 2, dtype=torch.long)
    for digit in range(level):
        # Later digits of the order move by larger steps first: neighbours in the order are distant in the picture.
        places = (2**digit * corners[None] + places[:, None]).flatten(0, 1)
    return (places[:, 0] << level) + places[:, 1]
