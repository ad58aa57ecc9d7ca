"""One training step: losses and gradients of the micro-batches, optimizers, running statistics, moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor

from genvid.batch import Batch
from genvid.train.accelerator import gathers_at_once, prepare_layers, replays_graphs
from genvid.train.config import TrainConfig
from genvid.train.ema import ExponentialAverage
from genvid.train.guard import NonFiniteGuard, poisoned
from genvid.train.journal import Journal
from genvid.train.optim import make_optimizers, set_lr
from genvid.train.placement import place, share
from genvid.train.sharding import keep_addresses
from genvid.train.stop import StopRequest
from genvid.train.task import StepOutput, TrainingTask


class TrainingStep:
    """Optimizer steps of a task, on all processes of an accelerator.

    The loss of a step is the mean over the *global* number of items, of all processes and micro-batches. Because
    randomness is per clip, losses do not depend on the number of processes.
    """

    def __init__(self, accelerator: Accelerator, task: TrainingTask, config: TrainConfig, seed: int) -> None:
        self.accelerator, self.config, self.seed = accelerator, config, seed
        self._replays_graphs = replays_graphs(accelerator, task, config)
        self.task, complete = task, place(task, accelerator)
        prepare_layers(accelerator, task, config)
        matrices = task.matrices()
        made = {p: make_optimizers(task.trainable(p), config.optimizers[p], matrices) for p in task.phases}
        optimizers = list(chain.from_iterable(made.values()))
        self.guard = NonFiniteGuard(task, optimizers, accelerator.device, config.max_skipped)
        self.model, *prepared = accelerator.prepare(task, *optimizers)
        share(complete, task, accelerator)
        if gathers_at_once(accelerator, task, config):
            keep_addresses(self.model)
        remaining = iter(prepared)
        self.optimizers = {phase: [next(remaining) for _ in own] for phase, own in made.items()}
        # After `prepare`, when weights are sharded: each process averages its share.
        self.average = None if config.ema_decay is None else ExponentialAverage(task.exportable(), config.ema_decay)

    def __call__(self, step: int, micro_batches: Sequence[Batch], stop: StopRequest, journal: Journal) -> None:
        """Optimizer step `step` (from 0) of every phase on this process's micro-batches."""
        self.seed_generators(step)
        device = self.accelerator.device
        items = [self.task.num_items(batch).to(device, non_blocking=True) for batch in micro_batches]
        shared = self.accelerator.reduce(torch.stack([*items, stop.indicator()]), "sum")
        stop.add_total(shared[-1])
        # accelerate divides by the number of micro-batches and averages gradients over processes: undo both.
        scale = self.config.accumulation * self.accelerator.num_processes / shared[:-1].sum()
        carries: list[dict[str, Tensor]] = [{} for _ in micro_batches]
        replaced: dict[str, Tensor] = {}
        self.guard.begin()
        phases = self.task.phases_at(step)
        for phase in phases:
            optimizers, lr = self.optimizers[phase], self.config.optimizers[phase].lr_at(step, self.config.steps)
            for optimizer in optimizers:
                set_lr(optimizer, lr)
            outputs = []
            for index, batch in enumerate(micro_batches):
                with self.accelerator.accumulate(self.model):
                    output = self.forward(batch, phase, step, carries[index])
                    carries[index] = output.carry
                    outputs.append(replace(output, loss=output.loss.detach()))
                    norm = self._backward(output.loss, scale, phase)
                    if self._replays_graphs and index + 1 < len(micro_batches):
                        outputs[index] = self._copied(outputs[index])
                        if index == 0:
                            self._copy_gradients(phase)
                    for optimizer in optimizers:
                        optimizer.step()
                        optimizer.zero_grad()
            sums = self.totals([output.sums for output in outputs])
            self.task.update_statistics(phase, step, sums)
            replaced |= self.task.replace_weights(phase, sums, self.guard.bad)
            terms = self.task.summary(phase, sums) | ({} if norm is None else {"grad_norm": norm})
            journal.add_phase(self.task.prefix(phase), outputs, items, terms, lr=lr, skip=self.guard.bad.bool())
        if self.average is not None:
            self.average.update(step, self.guard.bad)
            self.average.restart(replaced)
        self.guard.end(phases)

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        """Loss of a phase on one micro-batch, in the precision of the run."""
        with self.accelerator.autocast():  # accelerate leaves it to FSDP2's own mixed precision, which is off here
            return cast(StepOutput, self.model(batch, phase, step, carry))

    def _backward(self, loss: Tensor, scale: Tensor, phase: str) -> Tensor | None:
        """Gradients of a micro-batch. After the last one of a step: clip and check them, and return their norm."""
        accelerator = self.accelerator
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            # DeepSpeed steps at the end of its backward pass: only the loss can be checked before that.
            self.guard.check(accelerator.reduce(loss.detach().clone(), "sum"))
            accelerator.backward(loss * scale)
            found = cast(Any, self.model).get_global_grad_norm() or 0.0
            return torch.as_tensor(found, dtype=torch.float32, device=accelerator.device)
        accelerator.backward(loss * poisoned(scale, loss))
        if not accelerator.sync_gradients:
            return None
        limit = self.config.optimizers[phase].clip_norm or math.inf
        norm = accelerator.clip_grad_norm_(list(self.task.trainable(phase)), limit)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.guard.check(norm)
        return cast(Tensor, norm)

    @staticmethod
    def _copied(output: StepOutput) -> StepOutput:
        """The same in memory of its own, but for what the next phase receives."""
        named = {field: getattr(output, field) for field in ("terms", "counts", "sums")}
        copies = {field: {name: value.clone() for name, value in values.items()} for field, values in named.items()}
        return replace(output, loss=output.loss.clone(), **copies)

    def _copy_gradients(self, phase: str) -> None:
        """Copy the gradients of the first micro-batch to memory of their own, to which those of the others are added:
        where they are, a graph writes its results again."""
        for parameter in self.task.trainable(phase):
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

    def totals(self, parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Named sums of this process's micro-batches -> sums over all micro-batches and processes, float64."""
        added = {name: torch.stack([part[name] for part in parts]).sum(0, dtype=torch.double) for name in parts[0]}
        if not added:
            return {}
        flat = self.accelerator.reduce(torch.cat([value.flatten() for value in added.values()]), "sum")
        pieces = flat.split([value.numel() for value in added.values()])
        return {name: piece.view_as(value) for (name, value), piece in zip(added.items(), pieces, strict=True)}

    def seed_generators(self, step: int) -> None:
        """Seed torch's generators, which draw what has no clip seed (dropout), by step and process: no generator state
        has to be saved."""
        index = step * self.accelerator.num_processes + self.accelerator.process_index
        seed = ((self.seed << 40) + index) % 2**63
        torch.default_generator.manual_seed(seed)
        if self.accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed)
