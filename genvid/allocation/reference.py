"""The reference solver: the program in PuLP, solved by HiGHS where it is installed and by CBC otherwise.

Slow (0.1 s for 128 x 8, a minute for 4096 x 32), exact within the solver's tolerance (about 1e-7 of the value). It
serves as the reference in tests and as the place for side constraints.
"""

from __future__ import annotations

import math

import pulp
import torch

from genvid.allocation.program import BudgetError, BudgetProgram, Solution, check_reachable


def solve(program: BudgetProgram, backend: str | None = None) -> Solution:
    """Optimum by PuLP; `backend` names a PuLP solver ("HiGHS", "PULP_CBC_CMD"), by default the first that is there."""
    if program.exact:
        check_reachable(program)
    rows = program.distortion.tolist()
    problem = pulp.LpProblem("allocation", pulp.LpMinimize)
    chosen = [
        {k: problem.add_variable(f"x{i}_{k}", cat="Binary") for k, value in enumerate(row) if value < math.inf}
        for i, row in enumerate(rows)
    ]
    problem += pulp.lpSum(row[k] * x for row, options in zip(rows, chosen, strict=True) for k, x in options.items())
    for options in chosen:
        problem += pulp.lpSum(options.values()) == 1
    total = pulp.lpSum(program.grid[k] * x for options in chosen for k, x in options.items())
    problem += total == program.budget if program.exact else total <= program.budget
    status = pulp.LpStatus[problem.solve(pulp.getSolver(backend or available()[0], msg=False, threads=1, gapRel=0.0))]
    if status != "Optimal":
        raise BudgetError(f"PuLP ended with status {status} on {len(rows)} items and {program.budget} tokens")
    index = [max(options, key=lambda k: options[k].value()) for options in chosen]
    sizes = torch.tensor([program.grid[k] for k in index], device=program.distortion.device)
    value = sum(row[k] for row, k in zip(rows, index, strict=True))
    return Solution(sizes, value, value, int(sizes.sum()), math.nan)


def available() -> list[str]:
    """Names of the PuLP solvers that can run here, the preferred one first."""
    names = [name for name in ("HiGHS", "PULP_CBC_CMD") if pulp.getSolver(name, msg=False).available()]
    if not names:
        raise RuntimeError("PuLP finds neither HiGHS nor CBC; use the default solver, or pip install highspy")
    return names
