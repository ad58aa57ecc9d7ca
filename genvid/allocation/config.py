"""Allocators by configuration: `allocator: {type: threshold, tokens_per_video: 1024}`."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from genvid.allocation.allocators import (
    Allocator,
    GroupAllocator,
    JointAllocator,
    TableAllocator,
    ThresholdAllocator,
    UniformAllocator,
    largest_size,
    whole_tokens,
)
from genvid.allocation.calibration import Calibration
from genvid.allocation.online import OnlineBudgetAllocator
from genvid.allocation.predictor import DistortionPredictor
from genvid.config import Choice, ConfigError


@dataclass(frozen=True)
class AllocatorInputs:
    """Parts that an allocator may be built from; a missing part is a ConfigError."""

    blocks: int
    predictor: DistortionPredictor | None
    calibration: Calibration | None

    def needed_predictor(self, name: str) -> DistortionPredictor:
        if self.predictor is None:
            raise ConfigError(f"allocator '{name}' needs a scorer; train one, or use 'uniform' or 'table'")
        return self.predictor

    def needed_calibration(self, name: str) -> Calibration:
        if self.calibration is None:
            raise ConfigError(f"allocator '{name}' needs a calibration; make one with recipes/calibrate.py")
        return self.calibration

    def sizes(self) -> Tensor | None:
        """(K,) candidate sizes of the predictor or the calibration; None without either."""
        if self.predictor is not None:
            return self.predictor.sizes
        return None if self.calibration is None else torch.tensor(self.calibration.sizes)


@dataclass(frozen=True)
class AllocatorConfig(Choice):  # type: ignore[misc]
    """Which rule, and its budget in (mean) tokens per video."""

    tokens_per_video: float

    def __post_init__(self) -> None:
        if not 0 < self.tokens_per_video < math.inf:
            raise ValueError(f"tokens_per_video must be positive and finite, got {self.tokens_per_video}")
        if self.clips_per_budget < 1:
            raise ValueError(f"group_size must be at least 1, got {self.clips_per_budget}")

    @property
    def clips_per_budget(self) -> int:
        """Clips that share one budget."""
        return 1

    @abstractmethod
    def build(self, inputs: AllocatorInputs) -> Allocator: ...


@AllocatorConfig.register_subclass("uniform")
@dataclass(frozen=True)
class UniformConfig(AllocatorConfig):
    """The same length everywhere: the largest candidate size (without a grid: integer from 1) within the budget."""

    def build(self, inputs: AllocatorInputs) -> Allocator:
        length, sizes = self.tokens_per_video / inputs.blocks, inputs.sizes()
        if sizes is None:
            sizes = torch.tensor([max(1, whole_tokens(length))])
        return UniformAllocator(int(largest_size(sizes, length)))


@AllocatorConfig.register_subclass("table")
@dataclass(frozen=True)
class TableConfig(AllocatorConfig):
    """The calibrated lengths per block, the same for every clip."""

    def build(self, inputs: AllocatorInputs) -> Allocator:
        calibration = inputs.needed_calibration("table")
        return TableAllocator(calibration.table(self.tokens_per_video), torch.tensor(calibration.sizes))


@AllocatorConfig.register_subclass("group")
@dataclass(frozen=True)
class GroupConfig(AllocatorConfig):
    """AdapTok's rule: the block budgets of a table (the calibrated one by default), shared within groups."""

    group_size: int = 64
    exact: bool = False
    block_budgets: tuple[float, ...] | None = None
    """(G,) mean tokens per block that sum to `tokens_per_video`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_budgets is not None and not abs(sum(self.block_budgets) - self.tokens_per_video) <= 1e-6:
            raise ValueError(
                f"block_budgets sum to {sum(self.block_budgets):g}, not to tokens_per_video {self.tokens_per_video:g}"
            )

    @property
    def clips_per_budget(self) -> int:
        return self.group_size

    def build(self, inputs: AllocatorInputs) -> Allocator:
        predictor, table = inputs.needed_predictor("group"), self.block_budgets
        if table is None:
            table = tuple(inputs.needed_calibration("group").table(self.tokens_per_video))
        return GroupAllocator(predictor, table, self.group_size, exact=self.exact)


@AllocatorConfig.register_subclass("joint")
@dataclass(frozen=True)
class JointConfig(AllocatorConfig):
    """One budget over all blocks of all clips of a group."""

    group_size: int = 64
    rounds: int = 1

    @property
    def clips_per_budget(self) -> int:
        return self.group_size

    def build(self, inputs: AllocatorInputs) -> Allocator:
        weights = None if inputs.calibration is None else inputs.calibration.block_weights
        predictor = inputs.needed_predictor("joint")
        return JointAllocator(
            predictor, self.tokens_per_video, self.group_size, block_weights=weights, rounds=self.rounds
        )


@AllocatorConfig.register_subclass("threshold")
@dataclass(frozen=True)
class ThresholdConfig(AllocatorConfig):
    """Every clip by itself, at the multiplier calibrated for the budget."""

    def build(self, inputs: AllocatorInputs) -> Allocator:
        calibration = inputs.needed_calibration("threshold")
        multiplier = calibration.multiplier(self.tokens_per_video)
        predictor = inputs.needed_predictor("threshold")
        return ThresholdAllocator(predictor, multiplier, block_weights=calibration.block_weights)


@AllocatorConfig.register_subclass("online")
@dataclass(frozen=True)
class OnlineConfig(AllocatorConfig):
    """At most `tokens_per_video` for every clip; a calibration, if given, improves the forecast."""

    def build(self, inputs: AllocatorInputs) -> Allocator:
        predictor, calibration = inputs.needed_predictor("online"), inputs.calibration
        if calibration is None:
            return OnlineBudgetAllocator(predictor, self.tokens_per_video)
        return OnlineBudgetAllocator(
            predictor, self.tokens_per_video, typical=calibration.typical(), block_weights=calibration.block_weights
        )


def build_allocator(
    config: AllocatorConfig,
    blocks: int,
    predictor: DistortionPredictor | None = None,
    calibration: Calibration | None = None,
) -> Allocator:
    """The allocator that `config` describes, for clips of `blocks` blocks. ConfigError when a part is missing."""
    if calibration is not None and calibration.blocks != blocks:
        raise ConfigError(f"the calibration is for clips of {calibration.blocks} blocks, these have {blocks}")
    if calibration is not None and predictor is not None and list(calibration.sizes) != predictor.sizes.tolist():
        raise ConfigError(
            f"the calibration is for sizes {list(calibration.sizes)}, the scorer predicts {predictor.sizes.tolist()}; "
            "calibrate again"
        )
    return config.build(AllocatorInputs(blocks, predictor, calibration))
