"""The record of a run: metrics.jsonl, a progress line with ETA, and the trackers that accelerate knows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm


class Journal:
    """Sums the terms of every step on the device and writes their means every `every` steps.

    Means are weighted by the number of items, over all processes: what is written does not depend on how the global
    batch was split.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, *, start: int, steps: int, every: int) -> None:
        self.accelerator, self.every = accelerator, every
        self.file = folder / "metrics.jsonl"
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.values: dict[str, float] = {}
        self.waited = 0.0
        self.since = time.perf_counter()
        self.bar = tqdm(
            total=steps, initial=start, desc=folder.name, unit="step", disable=not accelerator.is_local_main_process
        )
        if start:
            self._forget_after(start)

    def add(self, terms: dict[str, Tensor], items: Tensor) -> None:
        """Account for one micro-batch: named means over its `items` items."""
        for name, value in terms.items():
            weighted = value.detach().double() * items
            self.sums[name] = self.sums[name] + weighted if name in self.sums else weighted
            self.weights[name] = self.weights[name] + items if name in self.weights else items.clone()

    def set(self, **values: float) -> None:
        """Values that are the same on every process (learning rate, gradient norm)."""
        self.values |= values

    def step(self, step: int, batch_size: int) -> dict[str, Any] | None:
        """Close optimizer step `step` (from 0); returns the record when one is due."""
        self.bar.update()
        if (step + 1) % self.every and step + 1 != self.bar.total:
            return None
        record = self._record(step + 1, batch_size)
        if self.accelerator.is_main_process:
            with self.file.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
            shown = {k: f"{v:.4g}" for k, v in record.items() if k == "loss" or k.endswith("/loss")}
            self.bar.set_postfix(shown, refresh=False)
        self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=step + 1)
        return record

    def _record(self, step: int, batch_size: int) -> dict[str, Any]:
        names = list(self.sums)
        totals = torch.stack([torch.stack([self.sums[n], self.weights[n].double()]) for n in names])
        totals = self.accelerator.reduce(totals, "sum").cpu()
        elapsed = time.perf_counter() - self.since
        count = (step - 1) % self.every + 1
        record: dict[str, Any] = {"step": step}
        record |= {name: float(total[0] / total[1].clamp(min=1)) for name, total in zip(names, totals, strict=True)}
        record |= self.values
        record |= {
            "clips_per_second": batch_size * count / elapsed,
            "data_wait": self.waited / elapsed,
        }
        self.sums, self.weights, self.waited = {}, {}, 0.0
        self.since = time.perf_counter()
        return record

    def _forget_after(self, step: int) -> None:
        """Drop lines that a killed run wrote after its last checkpoint."""
        if self.accelerator.is_main_process and self.file.exists():
            lines = self.file.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            self.file.write_text("".join(line + "\n" for line in kept))

    def close(self) -> None:
        self.bar.close()
