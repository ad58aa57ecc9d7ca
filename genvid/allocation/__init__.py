"""Token budgets: the integer program and the rules that decide how many tokens each block keeps."""

from genvid.allocation.allocators import (
    Allocator,
    GroupAllocator,
    JointAllocator,
    TableAllocator,
    ThresholdAllocator,
    UniformAllocator,
)
from genvid.allocation.predictor import DistortionPredictor, MeasuredDistortion
from genvid.allocation.program import BudgetError, Solution
from genvid.allocation.solver import solve_budget, solve_program

__all__ = [
    "Allocator",
    "BudgetError",
    "DistortionPredictor",
    "GroupAllocator",
    "JointAllocator",
    "MeasuredDistortion",
    "Solution",
    "TableAllocator",
    "ThresholdAllocator",
    "UniformAllocator",
    "solve_budget",
    "solve_program",
]
