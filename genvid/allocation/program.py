"""The token budget as an integer program (a multiple-choice knapsack), its checks and its answer.

Choose one size per item so that the summed distortion is least and the summed size is at most (or exactly) the
budget: the program of AdapTok (arXiv:2505.17011). An item is one block of one clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


class BudgetError(ValueError):
    """A token budget that no choice of sizes can meet."""


@dataclass(frozen=True)
class Solution:
    """An optimal choice, with the numbers that show it."""

    sizes: Tensor
    """(N,) int64 chosen size of each item."""
    value: float
    """Summed distortion."""
    bound: float
    """No choice can have a summed distortion below this (the Lagrangian dual; for PuLP the value itself)."""
    spent: int
    """Summed size."""
    multiplier: float
    """Distortion that one more token of budget is worth: the multiplier of the dual (nan from PuLP)."""


@dataclass(frozen=True)
class BudgetProgram:
    """A checked program. Use `build`."""

    distortion: Tensor
    """(N, K) float64; +inf forbids a size to an item."""
    grid: list[int]
    """K candidate sizes, ascending."""
    budget: int
    """When not `exact`: already lowered to what the sizes could sum to at most."""
    exact: bool

    @staticmethod
    def build(
        distortion: Tensor,
        sizes: Tensor,
        budget: int,
        *,
        exact: bool = False,
        minimum: Tensor | None = None,
        maximum: Tensor | None = None,
    ) -> BudgetProgram:
        """Check the parts of a program (see `genvid.allocation.solver.solve_program`)."""
        grid = [int(size) for size in sizes.tolist()]
        _check_shapes(distortion, grid)
        sizes = torch.tensor(grid, device=distortion.device)
        distortion = distortion.detach().double()
        if minimum is not None:
            distortion = distortion.masked_fill(sizes < minimum.to(sizes.device)[:, None], torch.inf)
        if maximum is not None:
            distortion = distortion.masked_fill(sizes > maximum.to(sizes.device)[:, None], torch.inf)
        low, high = _range(distortion, sizes, grid)
        if budget < low or (exact and budget > high):
            raise BudgetError(
                f"a budget of {budget} tokens cannot be met: {len(distortion)} items with sizes "
                f"{grid[0]} to {grid[-1]} can take {low} to {high} tokens"
            )
        if not exact:
            budget = min(budget, high)
            budget -= (budget - low) % grid_unit(grid)
        return BudgetProgram(distortion, grid, budget, exact)


def grid_unit(grid: list[int]) -> int:
    """Greatest common divisor of the steps between sizes: sums of sizes differ by multiples of it."""
    return math.gcd(*(size - grid[0] for size in grid)) or 1


def reachable_neighbours(program: BudgetProgram) -> tuple[int | None, int | None]:
    """The nearest sums at or below, and at or above, the budget that some choice of sizes has.

    Sets of sums are the bits of one Python integer, shifted by each allowed size and joined, item after item.
    """
    unit, first = grid_unit(program.grid), program.grid[0]
    offsets = [(size - first) // unit for size in program.grid]
    sums = 1
    for allowed in (program.distortion < torch.inf).tolist():
        joined = 0
        for offset, usable in zip(offsets, allowed, strict=True):
            if usable:
                joined |= sums << offset
        sums = joined
    base = first * len(program.distortion)
    target = (program.budget - base) // unit
    aligned = (program.budget - base) % unit == 0
    below = sums & ((1 << (target + 1)) - 1)
    above = sums >> (target if aligned else target + 1) << (target if aligned else target + 1)
    under = base + unit * (below.bit_length() - 1) if below else None
    over = base + unit * ((above & -above).bit_length() - 1) if above else None
    return under, over


def check_reachable(program: BudgetProgram) -> None:
    """Raise BudgetError when an exact budget falls between two sums."""
    under, over = reachable_neighbours(program)
    if under != program.budget:
        raise BudgetError(
            f"no choice of sizes {program.grid} for {len(program.distortion)} items sums to exactly {program.budget} "
            f"tokens; the nearest sums are {under} and {over} (or drop `exact` to spend at most the budget)"
        )


def _check_shapes(distortion: Tensor, grid: list[int]) -> None:
    if distortion.ndim != 2 or not len(distortion) or distortion.shape[1] != len(grid) or not grid:
        raise ValueError(
            f"distortion is (N, K) with one column for each of {len(grid)} sizes, got {tuple(distortion.shape)}"
        )
    if grid[0] < 0 or any(b <= a for a, b in pairwise(grid)):
        raise ValueError(f"candidate sizes must be non-negative and ascending, got {grid}")


def _range(distortion: Tensor, sizes: Tensor, grid: list[int]) -> tuple[int, int]:
    """Least and greatest sum of allowed sizes."""
    lowest, highest = torch.stack(distortion.aminmax()).tolist()
    if not lowest > -math.inf:
        raise ValueError("distortion holds NaN or -inf; fix the predictor (only +inf is allowed: it forbids a size)")
    if highest < math.inf:
        return grid[0] * len(distortion), grid[-1] * len(distortion)
    allowed = distortion < torch.inf
    stuck = (~allowed.any(1)).nonzero()
    if len(stuck):
        raise BudgetError(f"item {int(stuck[0])} may take none of the sizes {grid}; widen its minimum and maximum")
    least = torch.where(allowed, sizes, grid[-1]).amin(1).sum()
    most = torch.where(allowed, sizes, grid[0]).amax(1).sum()
    return int(least), int(most)
