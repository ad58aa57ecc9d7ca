"""The budget program of each clip alone, for many clips at once, by dynamic programming over the tokens spent."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from genvid.allocation.program import BudgetError, grid_unit


def solve_clips(distortion: Tensor, sizes: Tensor, budgets: Tensor) -> Tensor:
    """(B, G, K) curves, (K,) ascending sizes and (B,) budgets in tokens -> (B, G) sizes of least summed distortion.

    Exact, in float64. +inf forbids a size. Of choices of equal worth the one with the fewest tokens, then with the
    larger sizes in earlier blocks. BudgetError where a budget cannot be met.
    """
    clips, blocks, _ = distortion.shape
    grid: list[int] = sizes.tolist()
    unit = grid_unit(grid)
    offsets = (sizes - grid[0]) // unit
    room = ((budgets - blocks * grid[0]) // unit).clamp(max=blocks * int(offsets[-1]))
    if int(room.min()) < 0:
        raise BudgetError(
            f"a budget of {int(budgets.min())} tokens cannot be met: {blocks} blocks take at least {blocks * grid[0]}"
        )
    states = torch.arange(int(room.max()) + 1)
    before = states - offsets[:, None] + 1  # (K, S), 0 where the size does not fit
    least = distortion.new_full((clips, len(states)), torch.inf, dtype=torch.float64)
    least[:, 0] = 0
    chosen = []
    for curves in distortion.double().unbind(1):
        totals = pad(least, (1, 0), value=torch.inf)[:, before.clamp(min=0)] + curves[..., None]
        least, best = totals.min(1)
        chosen.append(best)
    least = least.masked_fill(states > room[:, None], torch.inf)
    if bool(least.amin(1).isinf().any()):
        raise BudgetError("the sizes that are allowed to a clip exceed its budget; widen them or raise the budget")
    state = least.argmin(1, keepdim=True)
    lengths = []
    for best in reversed(chosen):
        size = best.gather(1, state)
        lengths.append(size)
        state = state - offsets[size]
    return sizes[torch.cat(lengths[::-1], 1)]
