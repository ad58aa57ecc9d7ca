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
    chosen = program.sizes[choice]
    left = program.budget - int(chosen.sum())
    bound = float(least.sum()) + slope * program.budget
    if left and (program.exact or slope < 0):
        remainder = _Remainder(relaxed - least[:, None], program.sizes - chosen[:, None], left, -slope, program)
        choice = remainder.solve(choice, tolerance=_ROUNDING * (abs(bound) + abs(slope * program.budget)))
    value = float(program.distortion.gather(1, choice[:, None]).sum())
    sizes = program.sizes[choice]
    return Solution(sizes, value, min(bound, value), int(sizes.sum()), -slope)


def _relax(program: BudgetProgram) -> tuple[Tensor, float]:
    """(N,) indices best at the dual price that do not overspend, and the slope at the margin (minus the price)."""
    slopes = hull_slopes(program.distortion, program.sizes)
    items, steps = slopes.shape
    ordered, order = slopes.flatten().sort(stable=True)
    totals = program.grid[0] * items + program.sizes.diff()[order % max(steps, 1)].cumsum(0)
    taken = int((totals <= program.budget).sum())
    if not program.exact and taken >= int((ordered < 0).sum()):
        return (slopes < 0).sum(1), 0.0
    allowed = slopes < torch.inf
    if taken == int(allowed.sum()):
        last = float(ordered[taken - 1]) if taken else 0.0
        return allowed.sum(1), max(last, 0.0) if last == -np.inf else last
    margin, marginal_item = float(ordered[taken]), int(order[taken]) // steps
    before, after = slopes[:marginal_item] <= margin, slopes[marginal_item:] < margin
    return torch.cat([before, after]).sum(1), margin


@dataclass(frozen=True)
class _Remainder:
    """What the relaxation leaves to decide: how to use the last `left` tokens, fewer than one edge of a hull spans."""

    reduced: Tensor
    """(N, K) reduced costs."""
    change: Tensor
    """(N, K) tokens by which each option differs from the relaxed choice."""
    left: int
    price: float
    program: BudgetProgram

    def solve(self, choice: Tensor, tolerance: float) -> Tensor:
        """The optimal indices, given those of the relaxation."""
        known, repaired = self._change_one_item(choice)
        if known <= tolerance:
            return repaired
        if known == np.inf:
            check_reachable(self.program)
        # A guess that leaves few options open is tried before the limit that is known to be enough.
        few = min(self.reduced.numel(), self.reduced.shape[0] + 4 * self.reduced.shape[1])
        limit = min(max(float(self.reduced.flatten().kthvalue(few).values), tolerance), known + tolerance)
        while (found := self._search(choice, limit)) is None:
            limit = min(4 * limit, known + tolerance)
        return found

    def _change_one_item(self, choice: Tensor) -> tuple[float, Tensor]:
        """The best feasible choice that changes at most one item, and its excess over the dual bound (or inf)."""
        unspent = self.left - self.change
        allowed = unspent == 0 if self.program.exact else unspent >= 0
        excess = torch.where(allowed, self.reduced + self.price * unspent.double(), torch.inf)
        item, option = divmod(int(excess.argmin()), excess.shape[1])
        repaired = choice.clone()
        repaired[item] = option
        return float(excess[item, option]), repaired

    def _search(self, choice: Tensor, limit: float) -> Tensor | None:
        """The best choice within `limit` of the dual bound, or None when there is none."""
        open_options = self.reduced <= limit
        open_options.scatter_(1, choice[:, None], True)
        items = (open_options.sum(1) > 1).nonzero()[:, 0]
        columns = open_options[items].cpu().numpy()
        costs, changes = self.reduced[items].cpu().numpy(), self.change[items].cpu().numpy()
        unit = grid_unit(self.program.grid)
        options = [(changes[i, c] // unit, costs[i, c]) for i, c in enumerate(columns)]
        left, remains = divmod(self.left, unit)
        slack = 0
        if not self.program.exact:
            slack = int(min(limit / (self.price * unit), left + sum(int(-change[0]) for change, _ in options)))
        picks = None if remains else fill(options, left, slack, self.price * unit, limit)
        if picks is None:
            return None
        rows = [int(np.flatnonzero(c)[pick]) for c, pick in zip(columns, picks, strict=True)]
        found = choice.clone()
        found[items] = torch.tensor(rows, device=choice.device)
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
