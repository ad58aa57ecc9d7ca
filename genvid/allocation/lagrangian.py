"""The default solver: exact, by Lagrangian relaxation and a search over the few items it leaves open.

1. Price tokens. With a price per token the items fall apart: each takes the size of least distortion + price x size.
   The best price is the slope of one step of the items' lower convex hulls: the step, in order of falling gain per
   token, at which the budget runs out. One sort finds it.
2. Bound. The reduced cost of an option is how much worse it is than its item's best at that price. Any choice costs
   (dual bound) + (sum of its reduced costs) + price x (tokens unspent); all three terms are known.
3. Search. Some feasible choice lies `limit` above the dual bound. An option with a larger reduced cost than that
   cannot be part of a better one. What is left open (tens of items) goes through dynamic programming over the
   difference in tokens, and its result is the proven optimum.

Ties: between sizes of equal worth the smaller; where several items share the marginal step, the earlier item takes
it. The result is a function of the arguments alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genvid.allocation.curves import hull_slopes
from genvid.allocation.program import BudgetProgram, Solution, check_reachable, grid_unit

_ROUNDING = 1e-13
"""Relative excess over the dual bound that is rounding, not distortion."""


def solve(program: BudgetProgram) -> Solution:
    """Proven optimum. Works where `program.distortion` lies; only the open items visit the host, all at once."""
    choice, slope = _relax(program)
    relaxed = program.distortion - slope * program.sizes.double()  # an integer tensor times a float is float32
    least = relaxed.amin(1)
    bound = float(least.sum()) + slope * program.budget
    left = program.budget - int(program.sizes[choice].sum())
    if left and (program.exact or slope < 0):
        remainder = _Remainder(program, choice, relaxed - least[:, None], left, -slope)
        choice = remainder.solve(tolerance=_ROUNDING * (float(least.abs().sum()) + abs(slope) * program.budget))
    value = float(program.distortion.gather(1, choice[:, None]).sum())
    sizes = program.sizes[choice]
    return Solution(sizes, value, min(bound, value), int(sizes.sum()), -slope)


def _relax(program: BudgetProgram) -> tuple[Tensor, float]:
    """(N,) indices best at the dual price that do not overspend, and the slope at the margin (minus the price)."""
    slopes = hull_slopes(program.distortion, program.sizes)
    items, steps = slopes.shape
    ordered, order = slopes.flatten().sort(stable=True)
    totals = program.sizes.diff()[order % max(steps, 1)].cumsum(0)
    taken = int(torch.searchsorted(totals, program.budget - program.grid[0] * items, right=True))
    margin = float(ordered[taken]) if taken < len(ordered) else torch.inf
    if not program.exact and margin >= 0:
        return (slopes < 0).sum(1), 0.0
    if margin == torch.inf:  # every item at its largest allowed size
        last = float(ordered[taken - 1]) if taken else 0.0
        return (slopes < torch.inf).sum(1), last if last > -torch.inf else 0.0
    choice = (slopes < margin).sum(1)
    earlier = int(order[taken]) // steps
    choice[:earlier] = (slopes[:earlier] <= margin).sum(1)
    return choice, margin


@dataclass(frozen=True)
class _Remainder:
    """What the relaxation leaves to decide: how to use the last `left` tokens, fewer than one edge of a hull spans."""

    program: BudgetProgram
    choice: Tensor
    """(N,) indices chosen by the relaxation."""
    reduced: Tensor
    """(N, K) reduced costs."""
    left: int
    price: float

    def solve(self, tolerance: float) -> Tensor:
        """The optimal (N,) indices."""
        known, repaired = self._change_one_item()
        if known <= tolerance:
            return repaired
        if known == np.inf:
            check_reachable(self.program)
        # A guess that leaves few options open is tried before the limit that is known to be enough.
        costs = self.reduced[self.reduced < torch.inf]
        few = min(len(costs), self.reduced.shape[0] + 4 * self.reduced.shape[1])
        limit = min(max(float(costs.kthvalue(few).values), tolerance), known + tolerance)
        while (found := self._search(limit)) is None:
            if limit == known + tolerance:
                return repaired
            closed = costs[costs > limit]
            limit = min(max(4 * limit, float(closed.amin()) if len(closed) else 0.0), known + tolerance)
        return found

    def _change_one_item(self) -> tuple[float, Tensor]:
        """The excess over the dual bound of the best choice that changes at most one item (or inf), and its indices."""
        sizes = self.program.sizes
        unspent = self.left + sizes[self.choice, None] - sizes
        allowed = unspent == 0 if self.program.exact else unspent >= 0
        excess = torch.where(allowed, self.reduced + self.price * unspent.double(), torch.inf)
        item, option = divmod(int(excess.argmin()), excess.shape[1])
        repaired = self.choice.clone()
        repaired[item] = option
        return float(excess[item, option]), repaired

    def _search(self, limit: float) -> Tensor | None:
        """The best choice within `limit` of the dual bound, or None when there is none."""
        items = ((self.reduced <= limit).sum(1) > 1).nonzero()[:, 0]
        costs, start = self.reduced[items].cpu().numpy(), self.choice[items].tolist()
        unit, grid = grid_unit(self.program.grid), np.array(self.program.grid)
        columns = [np.flatnonzero(row <= limit) for row in costs]
        changes = [(grid[column] - grid[at]) // unit for column, at in zip(columns, start, strict=True)]
        left, slack = self.left // unit, 0
        if not self.program.exact:
            most = left - sum(int(change[0]) for change in changes)
            slack = int(min(limit / (self.price * unit), most))
        options = [(change, row[column]) for change, row, column in zip(changes, costs, columns, strict=True)]
        picks = fill(options, left, slack, self.price * unit, limit)
        if picks is None:
            return None
        found = self.choice.clone()
        rows = [int(column[pick]) for column, pick in zip(columns, picks, strict=True)]
        found[items] = torch.tensor(rows, dtype=found.dtype, device=found.device)
        return found


def fill(
    options: list[tuple[NDArray[np.int64], NDArray[np.float64]]], left: int, slack: int, price: float, limit: float
) -> list[int] | None:
    """One option (change, cost) per item: changes sum to `left` - u with 0 <= u <= slack, costs + price x u least.

    Dynamic programming over the sum of changes. Sums from which the goal cannot be reached any more, and partial
    costs above `limit`, are dropped. Changes ascend within an item. Returns the option of each item, or None.
    """
    rest_low = np.cumsum([0] + [int(change[0]) for change, _ in reversed(options)])[::-1]
    rest_high = np.cumsum([0] + [int(change[-1]) for change, _ in reversed(options)])[::-1]
    lowest, costs, trace = 0, np.zeros(1), []
    for i, (change, cost) in enumerate(options):
        first = max(lowest + int(change[0]), left - slack - int(rest_high[i + 1]))
        last = min(lowest + len(costs) - 1 + int(change[-1]), left - int(rest_low[i + 1]))
        if first > last:
            return None
        source = np.arange(first - lowest, last - lowest + 1) - change[:, None]
        padded = np.append(costs, np.inf)
        outside = (source < 0) | (source >= len(costs))
        candidates = padded[np.where(outside, len(costs), source)] + cost[:, None]
        pick = candidates.argmin(0)
        costs = candidates[pick, np.arange(len(pick))]
        within = np.flatnonzero(costs <= limit)
        if not len(within):
            return None
        begin, end = within[0], within[-1] + 1
        lowest, costs, pick = first + int(begin), costs[begin:end], pick[begin:end]
        trace.append((lowest, pick))
    total = costs + price * (left - lowest - np.arange(len(costs)))
    total[: max(left - slack - lowest, 0)] = np.inf
    total[max(left - lowest + 1, 0) :] = np.inf
    if not len(total) or total.min() > limit:
        return None
    state, picks = lowest + int(total.argmin()), []
    for (lowest, pick), (change, _) in zip(reversed(trace), reversed(options), strict=True):
        picks.append(int(pick[state - lowest]))
        state -= int(change[picks[-1]])
    return picks[::-1]
