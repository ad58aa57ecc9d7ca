"""Time the budget solvers on the same instances: python benchmarks/allocation.py [--pulp-items 4096]

Rate-distortion like curves, convex and noisy (no row convex), half the largest budget. Prints the median and the best
of the runs of the default solver, then one run of PuLP with each solver it finds here (CBC, HiGHS), model building
included, with the difference from the proven optimum; above --pulp-items it would take minutes and is left out.
"""

from __future__ import annotations

import argparse
import os
import time

import torch

from genvid.allocation import reference
from genvid.allocation.program import BudgetProgram
from genvid.allocation.solver import solve_program
from genvid.noise import sample_seeds, uniform

INSTANCES = ((128, 8, 1e-3), (1024, 8, 10e-3), (4096, 32, 150e-3))
"""Items, sizes, target in seconds."""


def make_curves(items: int, count: int, noise: float) -> torch.Tensor:
    """(items, count) curves a (1 + k)^-p, each with its own a and p, and relative noise."""
    seeds = sample_seeds(0, "benchmark", torch.arange(items))
    scale, decay = torch.exp(3 * uniform(seeds, "scale", 1) - 1.5), 0.2 + 1.3 * uniform(seeds, "decay", 1)
    curves = scale * (1 + torch.arange(count)).double() ** -decay
    return curves * (1 + noise * (2 * uniform(seeds, "noise", count) - 1))


def time_default(
    curves: torch.Tensor, sizes: torch.Tensor, budget: int, device: str, runs: int
) -> tuple[float, float, float]:
    """Median seconds, best seconds, value."""
    curves, seconds, value = curves.to(device), [], 0.0
    for _ in range(runs):
        start = time.perf_counter()
        value = solve_program(curves, sizes, budget).value
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[runs // 2], min(seconds), value


def time_pulp(curves: torch.Tensor, sizes: torch.Tensor, budget: int, backend: str) -> tuple[float, float]:
    """Seconds and value of one run."""
    start = time.perf_counter()
    value = reference.solve(BudgetProgram.build(curves, sizes, budget), backend).value
    return time.perf_counter() - start, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=51)
    parser.add_argument("--pulp-items", type=int, default=1024, help="items of the largest instance that PuLP solves")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, {arguments.device}")
    for items, count, target in INSTANCES:
        sizes = 64 * torch.arange(1, count + 1)
        budget = items * int(sizes[-1]) // 2
        for kind, noise in (("convex", 0.0), ("noisy", 0.05)):
            curves = make_curves(items, count, noise)
            median, best, optimum = time_default(curves, sizes, budget, arguments.device, arguments.runs)
            verdict = "met" if median < target else "MISSED"
            line = f"{items:5d} x {count:2d} {kind:6s} lagrangian {median * 1e3:8.2f} ms (best {best * 1e3:.2f})"
            print(f"{line}, target {target * 1e3:.0f} ms {verdict}", flush=True)
            for backend in reference.available() if items <= arguments.pulp_items else ():
                seconds, value = time_pulp(curves, sizes, budget, backend)
                print(
                    f"{'':21s}{backend:12s} {seconds * 1e3:8.0f} ms, {value - optimum:+.1e} from the optimum",
                    flush=True,
                )


if __name__ == "__main__":
    main()
