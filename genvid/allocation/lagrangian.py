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

import math
from dataclasses import dataclass

import numpy as np
import torch

from genvid.allocation.curves import Floats, Integers, hull_slopes
from genvid.allocation.program import BudgetProgram, Solution, check_reachable, grid_unit

_ROUNDING = 1e-13
"""Relative excess over the dual bound that is rounding, not distortion."""


def solve(program: BudgetProgram) -> Solution:
    """The proven optimum, computed on the host from one copy of the curves: the same for curves on any device."""
    distortion, sizes = program.distortion.cpu().numpy(), np.array(program.grid)
    choice, slope = _relax(program, distortion, sizes)
    relaxed = distortion - slope * sizes
    least = relaxed.min(1)
    bound = float(least.sum()) + slope * program.budget
    left = program.budget - int(sizes[choice].sum())
    if left and (program.exact or slope < 0):
        remainder = _Remainder(program, sizes, choice, relaxed - least[:, None], left, -slope)
        choice = remainder.solve(tolerance=_ROUNDING * (float(np.abs(least).sum()) + abs(slope) * program.budget))
    value = float(distortion[np.arange(len(choice)), choice].sum())
    chosen = sizes[choice]
    tokens = torch.from_numpy(chosen).to(program.distortion.device)
    return Solution(tokens, value, min(bound, value), int(chosen.sum()), -slope)


def _relax(program: BudgetProgram, distortion: Floats, sizes: Integers) -> tuple[Integers, float]:
    """(N,) indices best at the dual price that do not overspend, and the slope at the margin (minus the price)."""
    slopes = hull_slopes(distortion, sizes)
    items, steps = slopes.shape
    order = slopes.argsort(axis=None, kind="stable")
    totals = np.tile(np.diff(sizes), items)[order].cumsum()
    taken = int(totals.searchsorted(program.budget - program.grid[0] * items, side="right"))
    margin = float(slopes.flat[order[taken]]) if taken < len(order) else math.inf
    if not program.exact and margin >= 0:
        return (slopes < 0).sum(1), 0.0
    if margin == math.inf:  # every item at its largest allowed size
        last = float(slopes.flat[order[taken - 1]]) if taken else 0.0
        return (slopes < math.inf).sum(1), last if last > -math.inf else 0.0
    choice = (slopes < margin).sum(1)
    earlier = int(order[taken]) // steps
    choice[:earlier] = (slopes[:earlier] <= margin).sum(1)
    return choice, margin


@dataclass(frozen=True)
class _Remainder:
    """The choice after the relaxation: use of the last `left` tokens, fewer than one edge of a hull spans."""

    program: BudgetProgram
    sizes: Integers
    choice: Integers
    """(N,) indices chosen by the relaxation."""
    reduced: Floats
    """(N, K) reduced costs."""
    left: int
    price: float

    def solve(self, tolerance: float) -> Integers:
        """The optimal (N,) indices."""
        known, repaired = self._change_one_item()
        if known <= tolerance:
            return repaired
        if known == math.inf:
            check_reachable(self.program)
        # A guess that leaves few options open is tried before the limit that is known to be enough.
        costs = np.sort(self.reduced[self.reduced < math.inf])
        few = min(len(costs), self.reduced.shape[0] + 4 * self.reduced.shape[1])
        limit = min(max(float(costs[few - 1]), tolerance), known + tolerance)
        while (found := self._search(limit)) is None:
            if limit == known + tolerance:
                return repaired
            closed = costs[costs.searchsorted(limit, side="right") :]
            limit = min(max(4 * limit, float(closed[0]) if len(closed) else 0.0), known + tolerance)
        return found

    def _change_one_item(self) -> tuple[float, Integers]:
        """The excess over the dual bound of the best choice that changes at most one item (or inf), and its indices."""
        unspent = self.left + self.sizes[self.choice, None] - self.sizes
        allowed = unspent == 0 if self.program.exact else unspent >= 0
        excess = np.where(allowed, self.reduced + self.price * unspent, math.inf)
        item, option = divmod(int(excess.argmin()), excess.shape[1])
        repaired = self.choice.copy()
        repaired[item] = option
        return float(excess[item, option]), repaired

    def _search(self, limit: float) -> Integers | None:
        """The best choice within `limit` of the dual bound, or None when there is none."""
        is_open = self.reduced <= limit
        items = np.flatnonzero(is_open.sum(1) > 1)
        unit = grid_unit(self.program.grid)
        columns = [np.flatnonzero(is_open[item]) for item in items]
        options = [
            ((self.sizes[column] - self.sizes[self.choice[item]]) // unit, self.reduced[item, column])
            for item, column in zip(items, columns, strict=True)
        ]
        left, slack = self.left // unit, 0
        if not self.program.exact:
            slack = int(min(limit / (self.price * unit), left - sum(int(change[0]) for change, _ in options)))
        picks = fill(options, left, slack, self.price * unit, limit)
        if picks is None:
            return None
        found = self.choice.copy()
        found[items] = [column[pick] for column, pick in zip(columns, picks, strict=True)]
        return found


def fill(options: list[tuple[Integers, Floats]], left: int, slack: int, price: float, limit: float) -> list[int] | None:
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
        padded = np.append(costs, np.inf)  # both -1 and len(costs) lead to the infinity at the end
        candidates = padded[np.maximum(np.minimum(source, len(costs)), -1)] + cost[:, None]
        pick, costs = candidates.argmin(0), candidates.min(0)
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
