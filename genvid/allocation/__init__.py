"""Token budgets: the integer program and the rules that decide how many tokens each block keeps."""

from genvid.allocation.allocators import (
    Allocator,
    GroupAllocator,
    JointAllocator,
    TableAllocator,
    ThresholdAllocator,
    UniformAllocator,
)
from genvid.allocation.budget import Budget
from genvid.allocation.calibration import Calibration, CalibrationOrigin, calibrate, close_loop, fit_block_weights
from genvid.allocation.comparison import choices, with_expected
from genvid.allocation.config import AllocatorConfig, build_allocator
from genvid.allocation.online import (
    OnlineBudgetAllocator,
    OnlineController,
    StreamLedger,
    VideoLedger,
    WindowLedger,
)
from genvid.allocation.predictor import DistortionPredictor, FixedCurves, predict_all_curves
from genvid.allocation.program import BudgetError, Solution
from genvid.allocation.solver import solve_budget, solve_program

__all__ = [
    "Allocator",
    "AllocatorConfig",
    "Budget",
    "BudgetError",
    "Calibration",
    "CalibrationOrigin",
    "DistortionPredictor",
    "FixedCurves",
    "GroupAllocator",
    "JointAllocator",
    "OnlineBudgetAllocator",
    "OnlineController",
    "Solution",
    "StreamLedger",
    "TableAllocator",
    "ThresholdAllocator",
    "UniformAllocator",
    "VideoLedger",
    "WindowLedger",
    "build_allocator",
    "calibrate",
    "choices",
    "close_loop",
    "fit_block_weights",
    "predict_all_curves",
    "solve_budget",
    "solve_program",
    "with_expected",
]
