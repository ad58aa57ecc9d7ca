"""The record of a run: metrics.jsonl, a progress bar, and the trackers of accelerate.

A record has the terms of the task and `items_per_second` (items of the loss: clips, or target tokens),
`clips_per_second`, `data_wait` (share of the time spent waiting for data), `memory` (peak GB on the first GPU),
`grad_norm`, `lr`, `skipped` (steps since the run began), and held-out losses and terms (genvid.train.validation).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from genvid.files import write_text
from genvid.train.means import Means
from genvid.train.run import RunError, read_journal
from genvid.train.task import StepOutput

logger = logging.getLogger(__name__)

STARVED = 0.2
"""Share of the time spent waiting for data above which a warning is logged."""


class Journal:
    """Writes the means of every `every` steps: of a task's terms over all items and processes (genvid.train.means)."""

    def __init__(self, accelerator: Accelerator, folder: Path, *, start: int, steps: int, every: int) -> None:
        self.accelerator, self.every, self.recorded = accelerator, every, start
        self.file = folder / "metrics.jsonl"
        self.means = Means()
        self.values: dict[str, float] = {}
        self.waited = 0.0
        self.started = self.warned = False
        self.since = time.perf_counter()
        self.bar = tqdm(
            total=steps, initial=start, desc=folder.name, unit="step", disable=not accelerator.is_local_main_process
        )
        self._drop_after(start)

    def add_phase(
        self,
        prefix: str,
        outputs: Sequence[StepOutput],
        items: Sequence[Tensor],
        terms: dict[str, Tensor],
        *,
        lr: float,
        skip: Tensor,
    ) -> None:
        """Add one phase of a step: each micro-batch's output with its number of items, `terms` of the complete step,
        and the learning rate. Names begin with `prefix`; a skipped step (`skip`, bool) is not counted."""
        for output, count in zip(outputs, items, strict=True):
            self.means.add_output(prefix, output, count, skip)
        if terms:
            named = {prefix + name: value for name, value in terms.items()}
            self.means.add(named, torch.ones_like(items[0]), skip)
        self.set(**{f"{prefix}lr": lr})

    def set(self, **values: float) -> None:
        """Values that are the same on every process (learning rates, skipped steps)."""
        self.values |= values

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time spent here is waiting for data."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Time spent here is no training: speeds leave it out."""
        begun = time.perf_counter()
        yield
        self.since += time.perf_counter() - begun

    def due(self, step: int) -> bool:
        """Whether step `step` (from 0) ends with a record."""
        return (step + 1) % self.every == 0 or step + 1 == self.bar.total

    def step(self, step: int, batch_size: int, held_out: dict[str, float]) -> None:
        """Close optimizer step `step` (from 0); when a record is due, write it, `held_out` included."""
        self.bar.update()
        if not self.due(step):
            return
        record = self._record(step + 1, batch_size) | held_out
        if self.accelerator.is_main_process:
            self._write(record)
            self._warn(record)
            shown = {k: f"{v:.4g}" for k, v in record.items() if k == "loss" or k.endswith("/loss")}
            self.bar.set_postfix(shown, refresh=False)
        self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=step + 1)

    def _record(self, step: int, batch_size: int) -> dict[str, Any]:
        totals = self.means.read(self.accelerator)
        elapsed = time.perf_counter() - self.since
        count, self.recorded = step - self.recorded, step
        record: dict[str, Any] = {"step": step, **totals.means, **self.values}
        record |= {
            "items_per_second": totals.items / elapsed,
            "clips_per_second": batch_size * count / elapsed,
            "data_wait": self.waited / elapsed,
        }
        if self.accelerator.device.type == "cuda":
            record["memory"] = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
        self.waited = 0.0
        self.since = time.perf_counter()
        return record

    def _write(self, record: dict[str, Any]) -> None:
        try:
            with self.file.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"cannot write to {self.file} ({error.strerror})") from error

    def _warn(self, record: dict[str, Any]) -> None:
        """Warn once if data is the bottleneck; not for the first record, which includes starting up."""
        started, self.started = self.started, True
        if started and record["data_wait"] > STARVED and not self.warned:
            self.warned = True
            logger.warning(
                "training waits for data %.0f%% of the time: raise train.workers, or pre-encode the videos "
                "(docs/training.md, Data at speed)",
                100 * record["data_wait"],
            )

    def _drop_after(self, step: int) -> None:
        """Delete the records that a killed run wrote after its last checkpoint."""
        if self.accelerator.is_main_process and self.file.exists():
            kept = [record for record in read_journal(self.file.parent) if record["step"] <= step]
            write_text(self.file, "".join(json.dumps(record) + "\n" for record in kept))

    def close(self) -> None:
        self.bar.close()
