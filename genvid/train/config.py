"""How a stage is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from genvid.train.optim import OptimizerConfig


@dataclass(frozen=True)
class TrainConfig:
    """How a stage is trained. Steps, never epochs; `batch_size` is the global one."""

    steps: int
    batch_size: int = 32
    accumulation: int = 1
    """Micro-batches per step and process."""
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    activation_checkpointing: bool = False
    """Layers keep only their inputs and run again in the backward pass: about a third more work, for a fraction of the
    memory."""
    optimizers: dict[str, OptimizerConfig] = field(default_factory=lambda: {"model": OptimizerConfig()})
    """One for each phase of the task."""
    ema_decay: float | None = 0.999
    workers: int = 2
    log_every: int = 20
    save_every: int = 1000
    keep_checkpoints: int = 2
    max_skipped: int = 10
    """Steps in a row that may be skipped for a loss or gradient that is not finite, before the run stops."""
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulation", "log_every", "save_every", "keep_checkpoints", "max_skipped")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
