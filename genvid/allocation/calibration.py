"""Calibration of allocators on a data set: per-block tables, multipliers and typical gains, kept as JSON.

Calibration starts from one (N, G, K) tensor of curves, predicted or measured, over N clips. The curve of a block holds
for the lengths of earlier blocks under which it was taken (complete, or random: `CalibrationOrigin.earlier_blocks`);
in use those lengths differ. `close_loop` therefore corrects tables and multipliers by running the allocator itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from genvid import config
from genvid.allocation.allocators import ThresholdAllocator, whole_tokens
from genvid.allocation.curves import gains, running_minimum
from genvid.allocation.predictor import DistortionPredictor, predict_all_curves
from genvid.allocation.solver import solve_program
from genvid.tokens import BlockTokens


@dataclass(frozen=True)
class CalibrationOrigin:
    """Tokenizer, scorer and data of a calibration."""

    tokenizer: str
    """Fingerprint of the tokenizer folder."""
    scorer: str
    """Fingerprint of the scorer folder, or "measured"."""
    data: str
    """Hash of the data set."""
    clips: int
    """Clips drawn from it."""
    earlier_blocks: str
    """How the blocks before each curve's block were cut, in words."""
    date: str
    seed: int | None = None
    """Of the draw of the clips; None: its first clips, as calibrations were made before clips were drawn."""


@dataclass(frozen=True)
class Calibration:
    """Tables and multipliers at the calibrated budgets; in between they are interpolated."""

    sizes: tuple[int, ...]
    """K candidate sizes."""
    budgets: tuple[float, ...]
    """Ascending mean tokens per video."""
    tables: tuple[tuple[float, ...], ...]
    """Per budget: (G,) mean tokens per block."""
    multipliers: tuple[float, ...]
    """Per budget: distortion that a token is worth."""
    typical_gains: tuple[tuple[float, ...], ...]
    """(G, K - 1) gain per token and step of a typical clip: the forecast of future blocks."""
    block_weights: tuple[float, ...]
    """(G,) worth of a unit of gain in each block; the multipliers price weighted gains."""
    expected: Mapping[str, tuple[float, ...]]
    """Allocator -> per budget: mean distortion per video on the calibration curves."""
    provenance: CalibrationOrigin

    def __post_init__(self) -> None:
        blocks, budgets = len(self.block_weights), len(self.budgets)
        fits = (
            budgets == len(self.tables) == len(self.multipliers)
            and budgets > 0
            and len(self.typical_gains) == blocks
            and all(len(table) == blocks for table in self.tables)
            and all(len(row) == len(self.sizes) - 1 for row in self.typical_gains)
            and all(len(values) == budgets for values in self.expected.values())
            and all(a < b for a, b in pairwise(self.budgets))
        )
        if not fits:
            raise ValueError(f"this calibration contradicts itself on its {budgets} budgets, {blocks} blocks or sizes")

    @property
    def blocks(self) -> int:
        return len(self.block_weights)

    def table(self, tokens_per_video: float) -> list[float]:
        """(G,) mean tokens per block at a budget."""
        low, high, part = self._between(tokens_per_video)
        return [a + part * (b - a) for a, b in zip(self.tables[low], self.tables[high], strict=True)]

    def multiplier(self, tokens_per_video: float) -> float:
        """The multiplier at a budget; interpolated geometrically, as gains fall by factors."""
        low, high, part = self._between(tokens_per_video)
        a, b = self.multipliers[low], self.multipliers[high]
        if min(a, b) <= 0:
            return a + part * (b - a)
        return math.exp(math.log(a) + part * (math.log(b) - math.log(a)))

    def typical(self) -> Tensor:
        """`typical_gains` as a (G, K - 1) float64 tensor."""
        return torch.tensor(self.typical_gains, dtype=torch.float64)

    def save(self, path: str | Path) -> None:
        config.dump(self, path)

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Read what `save` wrote; every key must be there and no other (ValueError in words)."""
        file = Path(path)
        if not file.is_file():
            raise config.ConfigError(f"no calibration {file}; make one with recipes/calibrate.py")
        return config.decode(Calibration, config.read_json(file), source=str(file))

    def _between(self, tokens_per_video: float) -> tuple[int, int, float]:
        """Indices of the calibrated budgets around one, and how far it lies from the first to the second."""
        if not self.budgets[0] <= tokens_per_video <= self.budgets[-1]:
            raise ValueError(
                f"{tokens_per_video:g} tokens per video are outside the calibrated range, "
                f"{self.budgets[0]:g} to {self.budgets[-1]:g}; calibrate again with that budget"
            )
        high = next(i for i, budget in enumerate(self.budgets) if budget >= tokens_per_video)
        low = max(high - 1, 0)
        span = self.budgets[high] - self.budgets[low]
        return low, high, (tokens_per_video - self.budgets[low]) / span if span else 0.0


def calibrate(
    curves: Tensor,
    sizes: Tensor,
    budgets: Sequence[float],
    provenance: CalibrationOrigin,
    *,
    block_weights: Sequence[float] | None = None,
) -> Calibration:
    """(N, G, K) curves of a split, (K,) sizes and budgets in mean tokens per video -> a calibration.

    At each budget the joint program over all blocks of all clips gives the multiplier (its dual) and the table (its
    mean lengths). `expected` is left empty; see `genvid.allocation.comparison`. A typical clip has every size:
    ValueError for curves that forbid one.
    """
    if not bool(curves.isfinite().all()):
        raise ValueError("a distortion to calibrate on is NaN or infinite; fix the predictor")
    curves = running_minimum(curves)
    clips, blocks, _ = curves.shape
    weights = torch.ones(blocks) if block_weights is None else torch.tensor(list(block_weights))
    weighted = curves * weights.double()[:, None]
    ordered = sorted(budgets)
    solutions = [solve_program(weighted.flatten(0, 1), sizes, whole_tokens(budget * clips)) for budget in ordered]
    return Calibration(
        sizes=tuple(sizes.tolist()),
        budgets=tuple(float(budget) for budget in ordered),
        tables=tuple(
            _spend_all(s.sizes.view(clips, blocks).double().mean(0), budget, s.multiplier)
            for s, budget in zip(solutions, ordered, strict=True)
        ),
        multipliers=tuple(s.multiplier for s in solutions),
        typical_gains=_typical_gains(weighted, sizes),
        block_weights=tuple(weights.tolist()),
        expected={},
        provenance=provenance,
    )


def _typical_gains(curves: Tensor, sizes: Tensor) -> tuple[tuple[float, ...], ...]:
    """Mean gains after every clip is scaled to the median activity (total gain), so that busy clips do not dominate."""
    each = gains(curves, sizes)
    activity = (each * sizes.diff()).sum((1, 2), keepdim=True)
    typical = (each * (activity.median() / activity.clamp(min=1e-300))).mean(0)
    return tuple(map(tuple, typical.tolist()))


def close_loop(
    calibration: Calibration, predictor: DistortionPredictor, batches: Sequence[BlockTokens], *, rounds: int = 12
) -> Calibration:
    """Tables and multipliers as the threshold rule realises them, each block predicted after the cuts of earlier ones.

    Bisects, for each budget, the multiplier on a logarithmic scale until the mean tokens of `batches` meet the budget
    from below. Costs about (rounds + 3) x G predictions of every batch and budget.
    """
    multipliers, tables = [], []
    for budget, start in zip(calibration.budgets, calibration.multipliers, strict=True):
        multiplier, table = _bisect(calibration, predictor, batches, budget, start, rounds)
        multipliers.append(multiplier)
        tables.append(_spend_all(table, budget, multiplier))
    return replace(calibration, multipliers=tuple(multipliers), tables=tuple(tables))


def _bisect(
    calibration: Calibration,
    predictor: DistortionPredictor,
    batches: Sequence[BlockTokens],
    budget: float,
    start: float,
    rounds: int,
) -> tuple[float, Tensor]:
    """The least multiplier found that keeps mean tokens within `budget`, and its (G,) mean lengths."""

    def mean_lengths(multiplier: float) -> Tensor:
        rule = ThresholdAllocator(predictor, multiplier, block_weights=calibration.block_weights)
        return torch.cat([rule(batch).lengths for batch in batches]).double().mean(0)

    if (table := mean_lengths(0.0)).sum() <= budget:
        return 0.0, table
    high = start or 1e-9
    while (table := mean_lengths(high)).sum() > budget:
        high *= 2
        if math.isinf(high):
            raise ValueError(f"no multiplier keeps the mean within {budget:g} tokens per video")
    low = high / 2
    while (found := mean_lengths(low)).sum() <= budget:
        low, high, table = low / 2, low, found
    for _ in range(rounds):
        middle = math.sqrt(low * high)
        found = mean_lengths(middle)
        if found.sum() > budget:
            low = middle
        else:
            high, table = middle, found
    return high, table


def _spend_all(table: Tensor, budget: float, multiplier: float) -> tuple[float, ...]:
    """Mean lengths scaled to sum to the budget: the last fraction of a step is lost to rounding. Where tokens are worth
    nothing any more (multiplier 0), or the budget is below the first step, they are left unspent."""
    return tuple((table * (budget / table.sum() if multiplier > 0 and table.any() else 1.0)).tolist())


def fit_block_weights(
    predictor: DistortionPredictor, batches: Sequence[BlockTokens], lengths: Sequence[int]
) -> tuple[float, ...]:
    """(G,) cost to go: total distortion saved, later blocks included, per unit saved in block g.

    Measured by difference around `lengths` (G,) candidate sizes: block g gets the next larger size (the next smaller
    at the top), all other blocks keep theirs; weight = change of the summed distortion / change in block g, each
    summed over the clips. A block whose own curve is flat there gets weight 1, and no weight is below 0.
    """
    sizes, blocks = predictor.sizes.tolist(), len(lengths)
    own, total = torch.zeros(blocks, dtype=torch.float64), torch.zeros(blocks, dtype=torch.float64)
    index = torch.tensor([sizes.index(length) for length in lengths])
    for batch in batches:
        base = torch.tensor(list(lengths)).expand(len(batch.keep), -1)
        before = predict_all_curves(predictor, batch, base)
        for block in range(blocks):
            at = int(index[block])
            moved = at + 1 if at + 1 < len(sizes) else max(at - 1, 0)
            changed = base.clone()
            changed[:, block] = sizes[moved]
            after = predict_all_curves(predictor, batch, changed)
            own[block] += (before[:, block, at] - before[:, block, moved]).sum()
            later = torch.arange(block + 1, blocks)
            total[block] += (before[:, later, index[later]] - after[:, later, index[later]]).sum()
    weights = 1 + torch.where(own != 0, total / own, 0.0)
    return tuple(weights.clamp(min=0).tolist())
