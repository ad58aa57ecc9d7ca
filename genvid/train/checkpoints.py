"""The checkpoints of a run: complete or ignored, rotated, written while training goes on.

checkpoints/step_00001000/{state.safetensors, manifest.json}

A checkpoint holds gathered tensors by name: it can be resumed on any number of processes, replicated (DDP) or sharded
(FSDP2). It is copied to the CPU between two steps and written by a thread. DeepSpeed has its own format: training
waits while it is written, and it is resumed on the same number of processes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn

from genvid.files import save_tensors, sha256
from genvid.train.config import TrainConfig
from genvid.train.ema import ExponentialAverage
from genvid.train.run import MANIFEST, RunError, checkpoint_step, damage, list_checkpoints
from genvid.train.sharding import gather, local_part, named_weights, split

logger = logging.getLogger(__name__)

STATE, AVERAGE = "state.safetensors", "average.safetensors"


def check_steps(run: Path, config: TrainConfig) -> None:
    """RunError when `train.steps` of a config would change learning rates of steps that the run has finished, or is
    less than these."""
    checkpoints = list_checkpoints(run)
    if checkpoints:
        done = checkpoint_step(checkpoints[0])
        held = yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"]
        for phase, settings in config.optimizers.items():
            try:
                settings.check_extension(done, held, config.steps)
            except ValueError as error:
                raise RunError(f"{run}, optimizer {phase}: {error}") from None
        if config.steps < done:
            raise RunError(f"{run} has finished {done} steps: train.steps cannot become {config.steps}")


class TrainingState:
    """State that a run is resumed from, as tensors by name: weights, moving average, optimizers, skipped steps."""

    def __init__(
        self,
        task: nn.Module,
        optimizers: Mapping[str, Sequence[torch.optim.Optimizer]],
        average: ExponentialAverage | None,
        skipped: Tensor,
    ) -> None:
        self.task, self.optimizers, self.average, self.skipped = task, optimizers, average, skipped

    @torch.no_grad()
    def gathered(self) -> Iterator[tuple[str, Tensor]]:
        """Names and gathered tensors, one at a time. All processes must exhaust it."""
        for name, part, like in self._fixed():
            yield name, gather(part, like)
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.task.named_parameters()}
        for phase, optimizers in self.optimizers.items():
            for optimizer in optimizers:
                for parameter, fields in optimizer.state.items():
                    for field, value in fields.items():
                        like = parameter if value.shape == parameter.shape else value
                        yield f"optimizer.{phase}.{names[parameter]}.{field}", gather(local_part(value), like)

    @torch.no_grad()
    def restore(self, file: Path) -> None:
        """Load the tensors of a file, sharded as this state is."""
        parameters = dict(self.task.named_parameters())
        with safetensors.safe_open(str(file), "pt") as saved:
            for name, part, like in self._fixed():
                part.copy_(split(saved.get_tensor(name).to(part.device), like))
            for key in saved.keys():  # noqa: SIM118 (not a dict)
                if key.startswith("optimizer."):
                    _, phase, rest = key.split(".", 2)
                    name, _, field = rest.rpartition(".")
                    self._restore_field(phase, parameters[name], field, saved.get_tensor(key))

    def num_bytes(self) -> int:
        """Approximate size of a checkpoint: weights, average, and two moments of every weight."""
        weights: int = sum(value.nbytes for value in self.task.state_dict().values())
        moments: int = 2 * sum(parameter.nbytes for parameter in self.task.parameters() if parameter.requires_grad)
        averages = {} if self.average is None else self.average.weights
        return weights + moments + sum(value.nbytes for value in averages.values())

    def _fixed(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, local part, tensor that is sharded likewise) of all state that exists from the start."""
        yield "skipped", self.skipped, self.skipped
        for name, value in named_weights(self.task).items():
            yield f"task.{name}", local_part(value), value
        if self.average is not None:
            for name, value in self.average.averages.items():
                yield f"average.{name}", value, self.average.weights[name]

    def _restore_field(self, phase: str, parameter: nn.Parameter, field: str, value: Tensor) -> None:
        for optimizer in self.optimizers[phase]:
            if any(parameter is p for group in optimizer.param_groups for p in group["params"]):
                if value.shape == parameter.shape:
                    held = torch.zeros_like(parameter, dtype=value.dtype, requires_grad=False)
                    local_part(held).copy_(split(value.to(parameter.device), parameter))
                else:
                    held = value.to(parameter.device)
                optimizer.state[parameter][field] = held


class Checkpoints:
    """Saves and resumes the checkpoints of one run folder, of which the newest `keep` stay."""

    def __init__(self, accelerator: Accelerator, run: Path, keep: int) -> None:
        self.accelerator, self.run, self.folder, self.keep = accelerator, run, run / "checkpoints", keep
        self.deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None

    def check_space(self, state: TrainingState) -> None:
        """RunError when the disk cannot hold the checkpoints that the run will keep, and the one being written."""
        size = state.num_bytes()
        needed = size * max(1, self.keep + 1 - len(list_checkpoints(self.run)))
        free = shutil.disk_usage(self.run).free
        if free < needed:
            raise RunError(
                f"{self.run} needs {needed / 1e9:.2f} GB for checkpoints of {size / 1e9:.2f} GB each, but its disk has "
                f"{free / 1e9:.2f} GB free: free some, choose another output_dir or lower train.keep_checkpoints"
            )

    def resume(self, state: TrainingState) -> int:
        """Restore the newest complete checkpoint; returns its number of finished steps, 0 when there is none.

        Newer, damaged ones are renamed, each with a warning.
        """
        found = [self._find() if self.accelerator.is_main_process else None]
        broadcast_object_list(found)
        if found[0] is None:
            return 0
        checkpoint = self.folder / found[0]
        if self.deepspeed == (checkpoint / STATE).is_file():
            kinds = ("without", "with") if self.deepspeed else ("with", "without")
            raise RunError(f"{checkpoint} was saved {kinds[0]} DeepSpeed and cannot be resumed {kinds[1]} it")
        if self.deepspeed:
            self.accelerator.load_state(str(checkpoint))
            if state.average is not None:
                state.average.load_state_dict(safetensors.torch.load_file(checkpoint / AVERAGE))
        else:
            try:
                state.restore(checkpoint / STATE)
            except (safetensors.SafetensorError, KeyError, RuntimeError) as error:
                raise RunError(f"{checkpoint} is of another version of this task ({error}): train anew") from error
        return checkpoint_step(checkpoint)

    def _find(self) -> str | None:
        for left in self.folder.glob(".step_*"):
            shutil.rmtree(left)
        complete = None
        damaged: list[tuple[Path, str]] = []
        for checkpoint in list_checkpoints(self.run):
            reason = damage(checkpoint)
            if reason is None:
                complete = checkpoint.name
                break
            damaged.append((checkpoint, reason))
        for checkpoint, reason in damaged:
            aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
            start = f"resuming from {complete}" if complete else "starting anew: no other is complete"
            logger.warning("checkpoint %s is damaged (%s): kept as %s, %s", checkpoint, reason, aside.name, start)
        return complete

    def save(self, step: int, state: TrainingState) -> None:
        """Save the state after `step` steps. Returns when it is copied; a failed write is raised by a later call."""
        self.wait()
        if self.deepspeed:
            self._save_sharded(step, state.average)
            return
        tensors: dict[str, Tensor] = {}
        for name, value in state.gathered():
            if self.accelerator.is_main_process:
                tensors[name] = value.to("cpu", copy=True).contiguous()
        if self.accelerator.is_main_process:
            self.pending = self.writer.submit(self._write, step, tensors)

    def poll(self) -> None:
        """Raise the error of a failed write, if any; does not wait."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when the last checkpoint, which the first process writes, is on disk."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finish writing."""
        try:
            self.wait()
        finally:
            self.writer.shutdown()

    def _write(self, step: int, tensors: dict[str, Tensor]) -> None:
        temporary = self._temporary(step)
        try:
            self.folder.mkdir(exist_ok=True)
            temporary.mkdir(exist_ok=True)
            save_tensors(temporary / STATE, tensors)
            self._publish(temporary, step)
        except (OSError, safetensors.SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"cannot write checkpoint {step} into {self.folder} ({reason})") from error

    def _save_sharded(self, step: int, average: ExponentialAverage | None) -> None:
        temporary = self._temporary(step)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        averaged = {} if average is None else average.state_dict()
        if self.accelerator.is_main_process:
            save_tensors(temporary / AVERAGE, averaged)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._publish(temporary, step)
        self.accelerator.wait_for_everyone()

    def _temporary(self, step: int) -> Path:
        return self.folder / f".step_{step:08d}.tmp"

    def _publish(self, temporary: Path, step: int) -> None:
        """Write the manifest of a finished folder, give it its name, and delete the oldest checkpoints."""
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        sealed: dict[str, Any] = {}
        for file in files:
            _to_disk(file)
            name = file.relative_to(temporary).as_posix()
            sealed[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        (temporary / MANIFEST).write_text(json.dumps(sealed, indent=1) + "\n")
        _to_disk(temporary / MANIFEST)
        target = self.folder / f"step_{step:08d}"
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        _to_disk(self.folder)
        for old in list_checkpoints(self.run)[self.keep :]:
            # A half-deleted folder must not have the name of a checkpoint.
            gone = old.with_name(f".{old.name}.old")
            old.rename(gone)
            shutil.rmtree(gone)


def _to_disk(path: Path) -> None:
    """Flush the contents of a file, or the names in a folder, to disk, to survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
