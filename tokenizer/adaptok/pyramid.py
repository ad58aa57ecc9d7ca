"""The cells of the picture that the latents of a block cover, coarse to fine.

The first latent covers all of it, the next four its quarters, and so on. The cells of a last, incomplete level are
spread over the picture, so that every prefix of the latents covers all of it.

Symbols: L latents of a block, P patches of a block.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import count

import torch
from torch import Tensor, nn


class Pyramid(nn.Module):
    """The cells of `capacity` latents in pictures of `rows` x `columns` patches. It has no weights."""

    cells: Tensor
    """(L, P) part of each patch that lies in the cell of each latent."""
    coarser: Tensor
    """(L, L): see `coarser_weights`."""
    levels: Tensor
    """(L,) int64: latents of level l have cells of 2^-l of the picture's height and width."""
    latent_places: Tensor
    """(L, 2) float64: centre of each cell, in rows and columns of patches from the centre of the first one."""
    patch_places: Tensor
    """(P, 2) float64: row and column of each patch."""

    def __init__(self, rows: int, columns: int, cells: Tensor) -> None:
        """`cells` (L, P): `pyramid_cells` or `overlapping_cells`."""
        super().__init__()
        order = pyramid_order(len(cells))
        middle = (order[:, 1:] + 0.5) / 2.0 ** order[:, :1].double()
        tables = {
            "cells": cells,
            "coarser": coarser_weights(cells),
            "levels": order[:, 0],
            "latent_places": middle * torch.tensor([rows, columns]) - 0.5,
            "patch_places": torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)


@lru_cache(maxsize=64)
def overlapping_pyramid(rows: int, columns: int, capacity: int, device: torch.device) -> Pyramid:
    """The pyramid of pictures of any size, on `device`."""
    return Pyramid(rows, columns, overlapping_cells(rows, columns, capacity)).to(device)


def num_levels(capacity: int) -> int:
    """Levels of `capacity` latents, the last one complete or not."""
    return next(levels for levels in count(1) if 4**levels > 3 * capacity)


def pyramid_order(capacity: int) -> Tensor:
    """(L, 3) int64: level, row and column of the cell of each latent."""
    levels: list[Tensor] = []
    while sum(map(len, levels)) < capacity:
        level = len(levels)
        order = _spread(level)
        levels.append(torch.stack([torch.full_like(order, level), order >> level, order % 2**level], 1))
    return torch.cat(levels)[:capacity]


def pyramid_cells(rows: int, columns: int, capacity: int) -> Tensor:
    """(L, P) float: 1 where the corner of patch p (row-major) lies in the cell of latent l, else 0."""
    level, row, column = pyramid_order(capacity)[:, :, None].unbind(1)
    inside = [torch.arange(count) * 2**level // count == index for count, index in ((rows, row), (columns, column))]
    return (inside[0][:, :, None] & inside[1][:, None]).flatten(1).float()


def overlapping_cells(rows: int, columns: int, capacity: int) -> Tensor:
    """(L, P) float: the part of patch p (row-major) that lies in the cell of latent l."""
    level, row, column = pyramid_order(capacity)[:, :, None].unbind(1)
    down, across = _overlap(row, level, rows), _overlap(column, level, columns)
    return (down[:, :, None] * across[:, None]).flatten(1).float()


def coarser_weights(cells: Tensor) -> Tensor:
    """(L, P) cells -> (L, L): row l weights the latents before l to their mean over the cell of l."""
    before = cells.cumsum(0) - cells
    share = cells / cells.sum(1, keepdim=True).clamp(min=1e-6) / before.clamp(min=1)
    return (share @ cells.T).tril(-1)


def _overlap(index: Tensor, level: Tensor, count: int) -> Tensor:
    """(L, 1) -> (L, count): the part of each of `count` patches in part `index` of 2^level equal parts of their row."""
    width, patch = count / 2.0 ** level.double(), torch.arange(count)
    return (torch.minimum((index + 1) * width, patch + 1) - torch.maximum(index * width, patch)).clamp(min=0)


def _spread(level: int) -> Tensor:
    """The 4^level cells of a level, row-major numbers, ordered so that any first few of them lie far apart."""
    corners = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0]])
    places = torch.zeros(1, 2, dtype=torch.long)
    for digit in range(level):
        # Later digits of the order move by larger steps first: neighbours in the order are distant in the picture.
        places = (2**digit * corners[None] + places[:, None]).flatten(0, 1)
    return (places[:, 0] << level) + places[:, 1]
