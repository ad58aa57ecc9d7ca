"""How a stage is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from genvid.config import check_counts
from genvid.train.optim import OptimizerConfig


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch, precision and optimizers of a run. Counted in steps, never epochs."""

    steps: int
    batch_size: int = 32
    """Clips (or rows) of a step, over all processes and micro-batches."""
    accumulation: int = 1
    """Micro-batches per step and process."""
    precision: Literal["fp32", "bf16"] = "fp32"
    export_precision: Literal["fp32", "bf16"] = "fp32"
    """Of the exported weights; running statistics stay in float32. A model in bf16 is loaded as float32."""
    compile: bool = False
    """Compile the parts that gain most by it (`TrainingTask.use_compiler`): of a tokenizer complete steps."""
    compile_layers: bool = False
    """Compile layer by layer, for all tasks: ready sooner than complete steps, and then slower."""
    activation_checkpointing: bool = False
    """Keep only the inputs of layers and compute them again in the backward pass: a third more work, less memory."""
    optimizers: dict[str, OptimizerConfig] = field(default_factory=lambda: {"model": OptimizerConfig()})
    """Phase of the task -> its optimizer."""
    ema_decay: float | None = 0.999
    export_training: bool = False
    """Also export the weights that only training needs (discriminator, prior), for runs that start from the model."""
    workers: int = 2
    log_every: int = 20
    save_every: int = 1000
    keep_checkpoints: int = 2
    max_skipped: int = 10
    """Steps in a row with a loss or gradient that is not finite, after which the run ends. A phase that trains in every
    n-th step has a count of its own steps."""
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulation", "log_every", "save_every", "keep_checkpoints", "max_skipped")
        check_counts(self, *counts, section="train.")

    def check_phases(self, task: str, phases: Sequence[str]) -> None:
        """ValueError unless every phase of a task, and nothing else, has an optimizer."""
        if set(self.optimizers) != set(phases):
            raise ValueError(f"{task} needs train.optimizers for {', '.join(phases)}; got {', '.join(self.optimizers)}")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """When and on how much held-out data the loss is measured while a run trains."""

    every: int = 1000
    """Steps between measurements: a multiple of `train.log_every`, whose records hold the results."""
    batches: int = 2
    """Held-out batches of `train.batch_size`, the same ones at every measurement."""

    def __post_init__(self) -> None:
        check_counts(self, "every", "batches", section="validation.")

    def check_records(self, log_every: int) -> None:
        """ValueError unless every measurement falls on a step that has a record."""
        if self.every % log_every:
            raise ValueError(
                f"validation.every must be a multiple of train.log_every, {log_every} steps, whose records hold the "
                f"results; got {self.every}"
            )
