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
        self.sums: dict[tuple[str, ...], Tensor] = {}
        """Names of terms that come together -> their sums weighted by items, then the sum of the weights."""
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
        names = tuple(terms)
        weighted = torch.stack([*(value.detach() for value in terms.values()), torch.ones_like(items)]).double() * items
        self.sums[names] = self.sums[names] + weighted if names in self.sums else weighted

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
        sums = self.accelerator.reduce(torch.cat(list(self.sums.values())), "sum").tolist()
        totals: dict[str, tuple[float, float]] = {}
        for names in self.sums:
            *values, weight = sums[: len(names) + 1]
            del sums[: len(names) + 1]
            for name, value in zip(names, values, strict=True):
                total, seen = totals.get(name, (0.0, 0.0))
                totals[name] = total + value, seen + weight
        elapsed = time.perf_counter() - self.since
        count = (step - 1) % self.every + 1
        record: dict[str, Any] = {"step": step}
        record |= {name: total / max(1, seen) for name, (total, seen) in totals.items()}
        record |= self.values
        record |= {
            "clips_per_second": batch_size * count / elapsed,
            "data_wait": self.waited / elapsed,
        }
        self.sums, self.waited = {}, 0.0
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
