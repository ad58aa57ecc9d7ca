"""Expected distortion of every allocator against tokens, for the calibration plot."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from genvid.allocation.calibration import Calibration
from genvid.allocation.config import (
    AllocatorConfig,
    GroupConfig,
    JointConfig,
    OnlineConfig,
    TableConfig,
    ThresholdConfig,
    UniformConfig,
    build_allocator,
)
from genvid.allocation.curves import running_minimum
from genvid.allocation.predictor import FixedCurves
from genvid.tokens import BlockTokens


def with_expected(
    calibration: Calibration, curves: Tensor, *, measured: Tensor | None = None, group_size: int = 64
) -> Calibration:
    """Fill `expected`: the mean distortion per video of each allocator at each calibrated budget.

    Decisions are made on the (N, G, K) `curves`. Their cost is read from `measured` curves where given (otherwise from
    `curves` themselves), and then `oracle` is the joint program on the measured ones, without block weights: cuts of
    earlier blocks do not change these curves, so no group of clips can have a smaller distortion.
    """
    truth = running_minimum(curves if measured is None else measured)
    unweighted = replace(calibration, block_weights=(1.0,) * calibration.blocks)
    expected: dict[str, list[float]] = {}
    for budget in calibration.budgets:
        for name, choice in choices(budget, group_size).items():
            expected.setdefault(name, []).append(_mean_distortion(choice, calibration, curves, truth))
        if measured is not None:
            choice = JointConfig(budget, group_size)
            expected.setdefault("oracle", []).append(_mean_distortion(choice, unweighted, measured, truth))
    return replace(calibration, expected={name: tuple(values) for name, values in expected.items()})


def choices(budget: float, group_size: int) -> dict[str, AllocatorConfig]:
    """Name -> every allocator that can be compared, at `budget` mean tokens per video."""
    return {
        "uniform": UniformConfig(budget),
        "table": TableConfig(budget),
        "group": GroupConfig(budget, group_size),
        "joint": JointConfig(budget, group_size),
        "threshold": ThresholdConfig(budget),
        "online": OnlineConfig(budget),
    }


def _mean_distortion(choice: AllocatorConfig, calibration: Calibration, curves: Tensor, truth: Tensor) -> float:
    sizes = torch.tensor(calibration.sizes)
    keep = torch.ones(*curves.shape[:2], calibration.sizes[-1], dtype=torch.bool)
    allocator = build_allocator(choice, calibration.blocks, FixedCurves(curves, sizes), calibration)
    index = torch.searchsorted(sizes, allocator(BlockTokens(keep)).lengths)
    return float(truth.gather(2, index[..., None]).sum()) / len(truth)
