"""One training loop for every stage, on accelerate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genvid.train.accelerator import adapt, compile_task, make_accelerator
from genvid.train.ema import ExponentialAverage
from genvid.train.journal import Journal
from genvid.train.optim import OptimizerConfig, linear_matrices, make_optimizers, set_lr
from genvid.train.run import claim, load_checkpoint, newest_checkpoint, save_checkpoint
from genvid.train.sharding import whole_state
from genvid.train.task import Batch, TrainingTask

BatchStream = Callable[["Shard"], Iterator[list[Batch]]]
"""Given who asks, an endless iterator of the micro-batches of each step, on the right device."""


@dataclass(frozen=True)
class Shard:
    """What one process must know to read its part of every global batch."""

    rank: int
    world_size: int
    start_step: int
    micro_batches: int
    device: torch.device


@dataclass(frozen=True)
class TrainConfig:
    """How a stage is trained. Steps, never epochs; `batch_size` is the global one."""

    steps: int
    batch_size: int = 32
    accumulation: int = 1
    """Micro-batches per step and process."""
    precision: Literal["no", "bf16"] = "no"
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
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "log_every", "save_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")


class Trainer:
    """Trains `task` on `batches` into the run folder, resuming from its newest checkpoint.

    The mean of a step's loss is over the *global* number of items, of all processes and micro-batches; together with
    per-clip randomness this makes the losses of a run independent of the number of processes.
    """

    def __init__(self, task: TrainingTask, config: TrainConfig, folder: str | Path, *, run_config: Any, seed: int = 0):
        if set(config.optimizers) != set(task.phases):
            raise ValueError(
                f"{type(task).__name__} needs train.optimizers for {', '.join(task.phases)}; "
                f"got {', '.join(config.optimizers)}"
            )
        self.config, self.folder = config, Path(folder)
        self.accelerator = make_accelerator(
            self.folder,
            precision=config.precision,
            accumulation=config.accumulation,
            trackers=config.trackers,
            find_unused_parameters=len(task.phases) > 1,
        )
        adapt(self.accelerator, task, config)
        claim(self.folder, run_config, is_main=self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()
        if config.trackers:
            self.accelerator.init_trackers("tracking")
        set_seed(seed)
        self.task = task.to(self.accelerator.device)
        if config.activation_checkpointing:
            for layer in task.layers():
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
        if config.compile:
            compile_task(self.accelerator, task, config.accumulation)
        matrices = linear_matrices(task)
        made = {p: make_optimizers(task.trainable(p), config.optimizers[p], matrices) for p in task.phases}
        self.model, *prepared = self.accelerator.prepare(self.task, *(o for phase in made.values() for o in phase))
        waiting = iter(prepared)
        self.optimizers = {phase: [next(waiting) for _ in optimizers] for phase, optimizers in made.items()}
        # Only now do the processes hold what they will hold of the weights.
        self.average = None if config.ema_decay is None else ExponentialAverage(task.exportable(), config.ema_decay)

    def fit(self, batches: BatchStream) -> Path:
        """Run the remaining steps; returns the export folder. Does nothing when the run is already complete."""
        checkpoint = newest_checkpoint(self.folder)
        start = 0 if checkpoint is None else load_checkpoint(self.accelerator, checkpoint, self.average)
        if start < self.config.steps:
            self._loop(start, batches)
        return self._export()

    def _loop(self, start: int, batches: BatchStream) -> None:
        config, accelerator = self.config, self.accelerator
        shard = Shard(
            accelerator.process_index, accelerator.num_processes, start, config.accumulation, accelerator.device
        )
        stream = batches(shard)
        self.model.train()
        journal = Journal(accelerator, self.folder, start=start, steps=config.steps, every=config.log_every)
        with closing(journal):
            for step in range(start, config.steps):
                asked = time.perf_counter()
                micro_batches = next(stream)
                journal.waited += time.perf_counter() - asked
                self._step(step, micro_batches, journal)
                record = journal.step(step, config.batch_size)
                if record is not None:
                    self._check_finite(record)
                if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                    save_checkpoint(
                        accelerator, self.folder, step=step + 1, average=self.average, keep=config.keep_checkpoints
                    )
        if config.trackers:
            accelerator.end_training()

    def _step(self, step: int, micro_batches: list[Batch], journal: Journal) -> None:
        """One optimizer step of every phase."""
        carries: list[dict[str, Tensor]] = [{} for _ in micro_batches]
        items = [self.task.num_items(batch).to(self.accelerator.device) for batch in micro_batches]
        total = self.accelerator.reduce(torch.stack(items).sum(), "sum")
        # accelerate divides by the micro-batches, the processes' gradients are averaged: undo both.
        scale = self.config.accumulation * self.accelerator.num_processes / total
        for phase in self.task.phases_at(step):
            optimizers, settings = self.optimizers[phase], self.config.optimizers[phase]
            lr = settings.lr_at(step, self.config.steps)
            for optimizer in optimizers:
                set_lr(optimizer, lr)
            prefix = "" if len(self.task.phases) == 1 else f"{phase}/"
            for index, batch in enumerate(micro_batches):
                with self.accelerator.accumulate(self.model):
                    output = self.model(batch, phase, step, carries[index])
                    carries[index] = output.carry
                    self.accelerator.backward(output.loss * scale)
                    if self.accelerator.sync_gradients and settings.clip_norm is not None:
                        norm = self.accelerator.clip_grad_norm_(list(self.task.trainable(phase)), settings.clip_norm)
                        if norm is not None:
                            journal.add({f"{prefix}grad_norm": norm}, torch.ones_like(total))
                    for optimizer in optimizers:
                        optimizer.step()
                        optimizer.zero_grad()
                terms = {"loss": output.loss / items[index].clamp(min=1), **output.terms}
                journal.add({prefix + name: value for name, value in terms.items()}, items[index])
            journal.set(**{f"{prefix}lr": lr})
        if self.average is not None:
            self.average.update(step)

    def _check_finite(self, record: dict[str, Any]) -> None:
        bad = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            newest = newest_checkpoint(self.folder)
            raise FloatingPointError(
                f"{', '.join(bad)} became non-finite before step {record['step']}; "
                f"the last checkpoint is {newest.name if newest else 'none'}: lower the learning rate and resume"
            )

    def _export(self) -> Path:
        folder = self.folder / "export"
        model = self.task.exportable()
        state = whole_state(model) if self.average is None else self.average.state_dict()
        if self.accelerator.is_main_process:
            with torch.random.fork_rng():
                whole = type(model)(model.config)
            whole.load_state_dict(state)
            whole.save(folder)
        self.accelerator.wait_for_everyone()
        return folder
