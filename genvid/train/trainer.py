"""One training loop for every stage, on accelerate."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import yaml
from accelerate.utils import DistributedType, set_seed
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from genvid.train.accelerator import adapt, compile_task, make_accelerator
from genvid.train.checkpoints import Checkpoints, TrainingState, checkpoint_step, list_checkpoints
from genvid.train.config import TrainConfig
from genvid.train.ema import ExponentialAverage
from genvid.train.guard import NonFiniteGuard, poisoned
from genvid.train.journal import Journal
from genvid.train.optim import make_optimizers, set_lr
from genvid.train.preview import preview
from genvid.train.run import RunError, check_run_folder, claim_run_folder
from genvid.train.sharding import gathered_state
from genvid.train.stop import STOPPED, LookAhead, Stopped, StopRequest
from genvid.train.task import Batch, StepOutput, TrainingTask

logger = logging.getLogger(__name__)

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


class Trainer:
    """Trains `task` on `batches` into the run folder, resuming from its newest whole checkpoint.

    The mean of a step's loss is over the *global* number of items, of all processes and micro-batches; together with
    per-clip randomness this makes the losses of a run independent of the number of processes.
    """

    def __init__(self, task: TrainingTask, config: TrainConfig, folder: str | Path, *, run_config: Any, seed: int = 0):
        if set(config.optimizers) != set(task.phases):
            raise ValueError(
                f"{type(task).__name__} needs train.optimizers for {', '.join(task.phases)}; "
                f"got {', '.join(config.optimizers)}"
            )
        self.config, self.folder, self.seed, self.run_config = config, Path(folder), seed, run_config
        self.accelerator = make_accelerator(
            self.folder,
            precision=config.precision,
            accumulation=config.accumulation,
            trackers=config.trackers,
            find_unused_parameters=len(task.phases) > 1,
        )
        adapt(self.accelerator, task, config)
        origin = task.exportable().origin
        check_run_folder(self.folder, run_config, origin)
        self._check_steps()
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        if self.accelerator.is_main_process:
            claim_run_folder(self.folder, run_config, origin)
        self.accelerator.wait_for_everyone()
        if config.trackers:
            self.accelerator.init_trackers("tracking")
        set_seed(seed)
        self.task = task.to(self.accelerator.device)
        if config.activation_checkpointing:
            for layer in task.layers():
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if config.compile:
            compile_task(self.accelerator, task, config.accumulation)
        self.stop = StopRequest(self.accelerator.num_processes, self.accelerator.device)
        matrices = task.matrices()
        made = {p: make_optimizers(task.trainable(p), config.optimizers[p], matrices) for p in task.phases}
        self.guard = NonFiniteGuard(task, (o for phase in made.values() for o in phase), config.max_skipped)
        self.model, *prepared = self.accelerator.prepare(self.task, *(o for phase in made.values() for o in phase))
        waiting = iter(prepared)
        self.optimizers = {phase: [next(waiting) for _ in optimizers] for phase, optimizers in made.items()}
        # Only now do the processes hold what they will hold of the weights.
        self.average = None if config.ema_decay is None else ExponentialAverage(task.exportable(), config.ema_decay)

    def _check_steps(self) -> None:
        """RunError when another `train.steps` than that of the folder would change learning rates of finished steps."""
        checkpoints = list_checkpoints(self.folder)
        if checkpoints:
            held = yaml.safe_load((self.folder / "config.yaml").read_text())["train"]["steps"]
            for phase, settings in self.config.optimizers.items():
                try:
                    settings.check_extension(checkpoint_step(checkpoints[0]), held, self.config.steps)
                except ValueError as error:
                    raise RunError(f"{self.folder}, optimizer {phase}: {error}") from None

    def fit(self, batches: BatchStream) -> Path:
        """Run the remaining steps; returns the export folder. Does nothing when the run is already complete.

        Raises Stopped when the processes were told to stop, and FloatingPointError when too many steps in a row had a
        loss or gradient that was not finite.
        """
        state = TrainingState(self.task, self.optimizers, self.average, self.guard.skipped)
        checkpoints = Checkpoints(self.accelerator, self.folder, self.config.keep_checkpoints)
        with self.stop, closing(checkpoints):
            start = checkpoints.resume(state)
            if start < self.config.steps:
                checkpoints.check_space(state)
                self._loop(start, batches, checkpoints, state)
                checkpoints.wait()
            folder = self._export()
            if self.stop.failure is not None:  # the last records could not be written
                raise self.stop.failure
            return folder

    def _loop(self, start: int, batches: BatchStream, checkpoints: Checkpoints, state: TrainingState) -> None:
        config, accelerator = self.config, self.accelerator
        shard = Shard(
            accelerator.process_index, accelerator.num_processes, start, config.accumulation, accelerator.device
        )
        with self.stop.shield():
            stream = batches(shard)
            needed = islice(chain([next(stream)], stream), config.steps - start)
            upcoming = LookAhead(needed, 0 if self.stop.alone else self.stop.LAG + 1)
        self.model.train()
        journal = Journal(accelerator, self.folder, start=start, steps=config.steps, every=config.log_every)
        with closing(journal):
            for step in range(start, config.steps):
                asked = time.perf_counter()
                micro_batches = upcoming.take()
                journal.waited += time.perf_counter() - asked
                if upcoming.failure is not None:
                    self.stop.fail(upcoming.failure)
                if micro_batches is None:
                    self._save(step, checkpoints, state)
                    self._leave(step, checkpoints)
                self._step(step, micro_batches, journal)
                done, stopped = step + 1, self.stop.agreed()
                saves = stopped or done == config.steps or done % config.save_every == 0
                verdict = self.guard.verdict() if saves or journal.due(step) else None
                if verdict is not None:
                    journal.set(skipped=verdict.skipped)
                self._check_writing(partial(journal.step, step, config.batch_size))
                if verdict is not None and verdict.in_a_row >= config.max_skipped:
                    self._give_up(step - verdict.in_a_row + config.max_skipped, batches, shard)
                if saves:
                    self._save(done, checkpoints, state)
                    self._show(micro_batches[0], done)
                if stopped and done < config.steps:
                    self._leave(done, checkpoints)
                self._check_writing(checkpoints.poll)
        if config.trackers:
            accelerator.end_training()

    def _step(self, step: int, micro_batches: list[Batch], journal: Journal) -> None:
        """One optimizer step of every phase."""
        self._seed(step)
        carries: list[dict[str, Tensor]] = [{} for _ in micro_batches]
        items = [self.task.num_items(batch).to(self.accelerator.device) for batch in micro_batches]
        shared = self.accelerator.reduce(torch.stack([*items, self.stop.wish()]), "sum")
        self.stop.tell(shared[-1])
        # accelerate divides by the micro-batches, the processes' gradients are averaged: undo both.
        scale = self.config.accumulation * self.accelerator.num_processes / shared[:-1].sum()
        self.guard.begin()
        for phase in self.task.phases_at(step):
            optimizers, settings = self.optimizers[phase], self.config.optimizers[phase]
            lr = settings.lr_at(step, self.config.steps)
            for optimizer in optimizers:
                set_lr(optimizer, lr)
            outputs = []
            for index, batch in enumerate(micro_batches):
                with self.accelerator.accumulate(self.model):
                    with self.accelerator.autocast():  # which accelerate's FSDP2 leaves to its own mixed precision
                        output = self.model(batch, phase, step, carries[index])
                    carries[index] = output.carry
                    outputs.append(replace(output, loss=output.loss.detach()))
                    norm = self._backward(output.loss, scale, phase, settings.clip_norm)
                    for optimizer in optimizers:
                        optimizer.step()
                        optimizer.zero_grad()
            sums = self._totals([output.sums for output in outputs])
            self.task.update_statistics(phase, step, sums)
            terms = self.task.summary(phase, sums) | ({} if norm is None else {"grad_norm": norm})
            self._record(journal, phase, outputs, items, terms)
            journal.set(**{self._named(phase, "lr"): lr})
        if self.average is not None:
            self.average.update(step, self.guard.bad)
        self.guard.end()

    def _backward(self, loss: Tensor, scale: Tensor, phase: str, clip_norm: float | None) -> Tensor | None:
        """Gradients of a micro-batch; after the last of a step they are clipped, judged, and their norm returned."""
        accelerator = self.accelerator
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            # Its backward pass ends with the optimizer's step, so the loss alone can be judged in time.
            self.guard.check(accelerator.reduce(loss.detach().clone(), "sum"))
            accelerator.backward(loss * scale)
            found = cast(Any, self.model).get_global_grad_norm() or 0.0
            return torch.as_tensor(found, dtype=torch.float32, device=accelerator.device)
        accelerator.backward(loss * poisoned(scale, loss))
        if not accelerator.sync_gradients:
            return None
        norm = accelerator.clip_grad_norm_(list(self.task.trainable(phase)), clip_norm or math.inf)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.guard.check(norm)
        return cast(Tensor, norm)

    def _totals(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Named sums of the micro-batches of this process, added up over all micro-batches and processes; float64."""
        added = {name: torch.stack([part[name] for part in parts]).sum(0, dtype=torch.double) for name in parts[0]}
        if not added:
            return {}
        flat = self.accelerator.reduce(torch.cat([value.flatten() for value in added.values()]), "sum")
        pieces = flat.split([value.numel() for value in added.values()])
        return {name: piece.view_as(value) for (name, value), piece in zip(added.items(), pieces, strict=True)}

    def _record(
        self, journal: Journal, phase: str, outputs: list[StepOutput], items: list[Tensor], terms: dict[str, Tensor]
    ) -> None:
        """Add to the journal the means of each micro-batch of a phase, and the `terms` of the whole step."""
        skip = self.guard.bad.bool()
        for output, count in zip(outputs, items, strict=True):
            named = {"loss": output.loss / count.clamp(min=1), **output.terms}
            apart = {name: named.pop(name) for name in output.counts}
            journal.add({self._named(phase, name): value for name, value in named.items()}, count, skip)
            for name, value in apart.items():
                journal.add({self._named(phase, name): value}, output.counts[name], skip)
        if terms:
            named = {self._named(phase, name): value for name, value in terms.items()}
            journal.add(named, torch.ones_like(items[0]), skip)

    def _named(self, phase: str, name: str) -> str:
        return name if len(self.task.phases) == 1 else f"{phase}/{name}"

    def _seed(self, step: int) -> None:
        """What is drawn without a clip's seed (dropout) depends on the step: no generator has to be saved."""
        index = step * self.accelerator.num_processes + self.accelerator.process_index
        seed = ((self.seed << 40) + index) % 2**63
        torch.default_generator.manual_seed(seed)
        if self.accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _show(self, batch: Batch, done: int) -> None:
        """Reconstructions for the trackers, where the first process holds the whole model."""
        whole = self.accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if self.config.trackers and whole and self.accelerator.is_main_process:
            with self.accelerator.autocast():
                pictures = preview(self.task.exportable(), batch)
            for tracker in self.accelerator.trackers:
                if pictures is not None and hasattr(tracker, "log_images"):
                    tracker.log_images({"reconstruction": pictures}, step=done)

    def _save(self, done: int, checkpoints: Checkpoints, state: TrainingState) -> None:
        """Save a checkpoint; end the run soon where the one before failed, or the run folder was moved or deleted."""
        if self.accelerator.is_main_process:
            self._check_writing(checkpoints.wait)
            if not (self.folder / "config.yaml").exists():
                claim_run_folder(self.folder, self.run_config, self.task.exportable().origin)
                self.stop.fail(RunError(f"{self.folder} was moved or deleted while the run went on"))
        checkpoints.save(done, state)

    def _check_writing(self, write: Callable[[], None]) -> None:
        """Call what may fail to write; when it does, stop after a last attempt to save."""
        try:
            write()
        except RunError as error:
            self.stop.fail(error)

    def _leave(self, done: int, checkpoints: Checkpoints) -> NoReturn:
        """End after a signal or a failure, when all is saved: launchers end all processes when the first is gone."""
        try:
            checkpoints.wait()
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

    def _give_up(self, step: int, batches: BatchStream, shard: Shard) -> NoReturn:
        """End after too many steps that were skipped, the last one that counted being `step` (from 0)."""
        batch = next(batches(replace(shard, start_step=step)))
        file = self.folder / f"bad_batch_rank{shard.rank}.pt"
        torch.save([{name: value.cpu() for name, value in micro_batch.items()} for micro_batch in batch], file)
        self.accelerator.wait_for_everyone()
        raise FloatingPointError(
            f"loss or gradient were not finite in {self.config.max_skipped} steps in a row, the last of them step "
            f"{step + 1}, whose batch is in {file}; nothing was changed by them: mend the data or start anew with a "
            f"lower learning rate (the same command resumes from the newest checkpoint)"
        )

    def _export(self) -> Path:
        folder = self.folder / "export"
        model = self.task.exportable()
        state = gathered_state(model) if self.average is None else self.average.state_dict()
        if self.accelerator.is_main_process:
            with torch.random.fork_rng():
                whole = type(model)(model.config)
            whole.load_state_dict(state)
            whole.origin = model.origin
            whole.save(folder)
        self.accelerator.wait_for_everyone()
        return folder
