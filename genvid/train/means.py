"""Means of named terms over micro-batches, steps and processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from genvid.train.task import StepOutput


@dataclass(frozen=True)
class Totals:
    """Means by name over all processes."""

    means: dict[str, float]
    items: float
    """Items of the first term: those of the loss of the first phase."""


class Means:
    """Sums of terms, weighted by numbers of items and held on the device until they are read.

    A mean does not depend on how its items were split over micro-batches and processes, except for rounding.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        """Names of terms that are added together -> (terms + 1,) weighted sums, then the sum of the weights."""

    def add(self, terms: dict[str, Tensor], items: Tensor, skip: Tensor) -> None:
        """Add named means over `items` items; nothing where `skip` (bool)."""
        names = tuple(terms)
        weighted = torch.stack([*(value.detach() for value in terms.values()), torch.ones_like(items)]).double() * items
        weighted = torch.where(skip, 0.0, weighted)
        self._sums[names] = self._sums[names] + weighted if names in self._sums else weighted

    def add_output(self, prefix: str, output: StepOutput, items: Tensor, skip: Tensor) -> None:
        """Add loss and terms of one micro-batch of `items` items, their names behind `prefix`."""
        named = {"loss": output.loss / items.clamp(min=1), **output.terms}
        apart = {name: named.pop(name) for name in output.counts}
        self.add({prefix + name: value for name, value in named.items()}, items, skip)
        for name, value in apart.items():
            self.add({prefix + name: value}, output.counts[name], skip)

    def read(self, accelerator: Accelerator) -> Totals:
        """Means over all processes; sums start at 0 again. All processes must call it. Waits for the device."""
        sums = accelerator.reduce(torch.cat(list(self._sums.values())), "sum").tolist()
        totals: dict[str, tuple[float, float]] = {}
        for names in self._sums:
            *values, weight = sums[: len(names) + 1]
            del sums[: len(names) + 1]
            for name, value in zip(names, values, strict=True):
                total, seen = totals.get(name, (0.0, 0.0))
                totals[name] = total + value, seen + weight
        self._sums = {}
        items = next(iter(totals.values()))[1]
        return Totals({name: total / seen for name, (total, seen) in totals.items() if seen}, items)
