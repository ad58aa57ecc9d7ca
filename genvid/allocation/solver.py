"""Spend a token budget where it saves the most distortion: one program, two interchangeable solvers."""

from __future__ import annotations

from torch import Tensor

from genvid.allocation import lagrangian, reference
from genvid.allocation.program import BudgetProgram, Solution

SOLVERS = {"lagrangian": lagrangian.solve, "pulp": reference.solve}


def solve_budget(
    distortion: Tensor,
    sizes: Tensor,
    budget: int,
    *,
    exact: bool = False,
    minimum: Tensor | None = None,
    maximum: Tensor | None = None,
    solver: str = "lagrangian",
) -> Tensor:
    """The (N,) sizes of `solve_program`."""
    return solve_program(distortion, sizes, budget, exact=exact, minimum=minimum, maximum=maximum, solver=solver).sizes


def solve_program(
    distortion: Tensor,
    sizes: Tensor,
    budget: int,
    *,
    exact: bool = False,
    minimum: Tensor | None = None,
    maximum: Tensor | None = None,
    solver: str = "lagrangian",
) -> Solution:
    """One size per item, least summed distortion, summed size at most `budget` (exactly, when `exact`).

    distortion: (N, K) float, any shape of curve; +inf forbids a size to an item. Solved in float64 on the host; the
    sizes come back on its device, and are the same from any.
    sizes: (K,) ascending token counts, not necessarily evenly spaced.
    minimum, maximum: (N,) bounds on the size of each item.
    solver: "lagrangian" (proven optimal, milliseconds) or "pulp" (the reference).

    Not `exact`, curves that rise may leave tokens unspent: `Solution.spent` is the number used.
    Raises BudgetError when no choice meets the budget, with the range (or the nearest sums) that some choice does.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver '{solver}' is none of {', '.join(SOLVERS)}")
    program = BudgetProgram.build(distortion, sizes, budget, exact=exact, minimum=minimum, maximum=maximum)
    return SOLVERS[solver](program)
