"""One training loop for every stage, on accelerate. A single step is in genvid.train.step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import set_seed

from genvid.batch import Batch
from genvid.train.accelerator import adapt, make_accelerator
from genvid.train.checkpoints import Checkpoints, TrainingState, check_steps
from genvid.train.config import TrainConfig, ValidationConfig
from genvid.train.export import export
from genvid.train.journal import Journal
from genvid.train.preview import log_preview
from genvid.train.run import RunError, alone_in, check_run_folder, claim_run_folder
from genvid.train.start import export_training
from genvid.train.step import TrainingStep
from genvid.train.stop import STOPPED, LookAhead, Stopped, StopRequest
from genvid.train.task import TrainingTask
from genvid.train.validation import Validation

logger = logging.getLogger(__name__)

BatchStream = Callable[["Shard"], Generator[list[Batch]]]
"""The part of a process -> its micro-batches of each step, without end, on its device. Closing them ends the data
workers, which the signals at the end of a process do not reach (`StopRequest.shield`)."""


@dataclass(frozen=True)
class Shard:
    """The part of every global batch that one process reads."""

    rank: int
    world_size: int
    start_step: int
    micro_batches: int
    device: torch.device


@dataclass(frozen=True)
class HeldOut:
    """Data on which the loss is measured while a run trains."""

    batches: BatchStream
    config: ValidationConfig


class Trainer:
    """Trains `task` on a stream of batches into the run folder, resuming from its newest complete checkpoint."""

    def __init__(
        self,
        task: TrainingTask,
        config: TrainConfig,
        folder: str | Path,
        *,
        run_config: Any,
        seed: int = 0,
        held_out: HeldOut | None = None,
    ) -> None:
        config.check_phases(type(task).__name__, task.phases)
        if held_out is not None:
            held_out.config.check_records(config.log_every)
        self.config, self.folder, self.run_config, self.held_out = config, Path(folder), run_config, held_out
        self.origin = task.exportable().origin
        self.claimed = ExitStack()
        """Until it closes, no other process trains in the run folder."""
        self.accelerator = make_accelerator(
            self.folder,
            precision=config.precision,
            accumulation=config.accumulation,
            trackers=config.trackers,
            find_unused_parameters=len(task.phases) > 1,
        )
        adapt(self.accelerator, task, config)
        self._claim_folder()
        if config.trackers:
            self.accelerator.init_trackers("tracking")
        set_seed(seed)
        self.stop = StopRequest(self.accelerator.num_processes, self.accelerator.device)
        self.step = TrainingStep(self.accelerator, task, config, seed)
        self.state = TrainingState(task, self.step.optimizers, self.step.average, self.step.guard.skipped)
        self.checkpoints = Checkpoints(self.accelerator, self.folder, config.keep_checkpoints)

    def fit(self, batches: BatchStream) -> Path:
        """Run the remaining steps; returns the export folder. Does nothing when the run is already complete.

        Raises Stopped after a signal, and FloatingPointError when too many steps in a row had a loss or gradient that
        was not finite.
        """
        with self.claimed, self.stop, closing(self.checkpoints):
            start = self.checkpoints.resume(self.state)
            if start < self.config.steps:
                self.checkpoints.check_space(self.state)
                self._loop(start, batches)
                self.checkpoints.wait()
            folder = export(
                self.accelerator,
                self.step.task.exportable(),
                self.step.average,
                self.folder,
                self.config.export_precision,
            )
            if self.config.export_training:
                export_training(self.accelerator, self.step.task, folder)
            if self.stop.failure is not None:  # the last records could not be written
                raise self.stop.failure
            return folder

    def _loop(self, start: int, batches: BatchStream) -> None:
        config, shard = self.config, self._shard(start)
        with self.stop.shield():
            validation = self._validation()
            stream = batches(shard)
            upcoming = LookAhead(islice(stream, config.steps - start), 0 if self.stop.alone else self.stop.LAG + 1)
        self.step.model.train()
        journal = Journal(self.accelerator, self.folder, start=start, steps=config.steps, every=config.log_every)
        with closing(stream), closing(journal):
            for step in range(start, config.steps):
                with journal.waiting_for_data():
                    micro_batches = upcoming.take()
                if upcoming.failure is not None:
                    self.stop.fail(upcoming.failure)
                if micro_batches is None:
                    self._save(step)
                    self._leave(step)
                self.step(step, micro_batches, self.stop, journal)
                done, stopped = step + 1, self.stop.agreed()
                saves = stopped or done == config.steps or done % config.save_every == 0
                skipped = self.step.guard.read() if saves or journal.due(step) else None
                if skipped is not None:
                    journal.set(skipped=skipped.total)
                held_out: dict[str, float] = {}
                if validation is not None and validation.due(step):
                    with journal.clock_stopped():
                        held_out = validation.measure(step)
                with self.stop.after(RunError):
                    journal.step(step, config.batch_size, held_out)
                if skipped is not None and skipped.from_limit:
                    self._give_up(done - skipped.from_limit, batches)
                if saves:
                    self._save(done)
                    log_preview(self.accelerator, self.step.task.exportable(), micro_batches[0], done)
                if stopped and done < config.steps:
                    self._leave(done)
                with self.stop.after(RunError):
                    self.checkpoints.poll()
        if config.trackers:
            self.accelerator.end_training()

    def _claim_folder(self) -> None:
        """Check the run folder on all processes before the first one writes to it, which checks it again when no other
        run is at work in it."""
        self._check_folder()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with ExitStack() as alone:
                alone.enter_context(alone_in(self.folder))
                self._check_folder()
                claim_run_folder(self.folder, self.run_config, self.origin)
                self.claimed = alone.pop_all()
        self.accelerator.wait_for_everyone()

    def _check_folder(self) -> None:
        check_run_folder(self.folder, self.run_config, self.origin)
        check_steps(self.folder, self.config)

    def _shard(self, start: int) -> Shard:
        accelerator = self.accelerator
        processes = accelerator.num_processes
        return Shard(accelerator.process_index, processes, start, self.config.accumulation, accelerator.device)

    def _validation(self) -> Validation | None:
        if self.held_out is None:
            return None
        steps = islice(self.held_out.batches(self._shard(0)), self.held_out.config.batches)
        return Validation(self.step, list(chain.from_iterable(steps)), self.held_out.config.every)

    def _save(self, done: int) -> None:
        """Save a checkpoint; request a stop when the previous one failed, or the run folder was moved or deleted."""
        if self.accelerator.is_main_process:
            with self.stop.after(RunError):
                self.checkpoints.wait()
            if not (self.folder / "config.yaml").exists():
                claim_run_folder(self.folder, self.run_config, self.origin)
                self.stop.fail(RunError(f"{self.folder} was moved or deleted while the run went on"))
        self.checkpoints.save(done, self.state)

    def _leave(self, done: int) -> NoReturn:
        """End after a signal or a failure, when all is saved: launchers end all processes when the first is gone."""
        try:
            self.checkpoints.wait()
        except RunError as error:
            reasons = f"{self.stop.failure}; {error}" if self.stop.failure else f"{error}"
            raise RunError(f"{reasons}; the same command goes on from the newest checkpoint") from error
        if self.config.trackers:
            self.accelerator.end_training()
        self.accelerator.wait_for_everyone()
        if isinstance(self.stop.failure, (ValueError, OSError)):
            raise RunError(
                f"{self.stop.failure}; step {done} is saved in {self.folder}, and the same command goes on from it"
            ) from self.stop.failure
        if self.stop.failure is not None:
            raise self.stop.failure
        if self.accelerator.is_main_process:
            name = self.stop.received.name if self.stop.received else "a signal to or a failure of another process"
            logger.warning("%s: saved step %d; the same command goes on (exit status %d)", name, done, STOPPED)
        raise Stopped

    def _give_up(self, step: int, batches: BatchStream) -> NoReturn:
        """End after too many skipped steps in a row, the last one that counted being `step` (from 0)."""
        batch = next(batches(self._shard(step)))
        file = self.folder / f"bad_batch_rank{self.accelerator.process_index}.pt"
        torch.save([{name: value.cpu() for name, value in micro_batch.items()} for micro_batch in batch], file)
        self.accelerator.wait_for_everyone()
        raise FloatingPointError(
            f"loss or gradient were not finite in {self.config.max_skipped} steps in a row, the last of them step "
            f"{step + 1}, whose batch is in {file}; nothing was changed by them: fix the data or start anew with a "
            f"lower learning rate (the same command resumes from the newest checkpoint)"
        )
