"""The redundancy allocator: a position is dropped while its latent stays near the last one that was kept there.

Nothing is learned and nothing is searched (arXiv 2606.06158, of which only the abstract is certain): one pass over the
temporal L1 differences of the latents. The difference is the mean over channels by the codec's metric
(genvid.tokenizer.lit.metric), in standard deviations, so one threshold means the same on every codec.

`RedundancyAllocator` has a threshold and lets the rate follow from the content. `BudgetedRedundancy` keeps exactly a
given number of positions: our addition, the paper has no budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from genvid.allocation import BudgetError
from genvid.tokenizer.lit.metric import by_metric
from genvid.tokenizer.lit.reference import Reference, last_kept
from genvid.tokens import BlockTokens

_ROUNDS, _LEVELS = 2, 64
"""A threshold is searched in rounds of so many levels side by side: on a GPU a round costs as much as one level."""


@dataclass(frozen=True)
class RedundancyConfig:
    """A threshold on the measured temporal difference. `reference` last_kept bounds the drift, previous does not."""

    threshold: float
    reference: Literal["last_kept", "previous"] = "last_kept"

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"a redundancy threshold is at least 0, got {self.threshold}")


class RedundancyAllocator:
    """Keeps a latent that is at least `threshold` away from its reference; the first block whole. Causal."""

    def __init__(self, config: RedundancyConfig, metric: Tensor) -> None:
        """`metric` (C, C): that of the codec."""
        self.config, self.metric = config, metric

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        return self.continued(tokens, None)

    def continued(self, tokens: BlockTokens, start: Reference | None) -> BlockTokens:
        """The next blocks of a stream whose past left `start`; its first block needs no reference in itself then."""
        latents = measured(tokens, self.metric)
        before = None if start is None else by_metric(start.latents, self.metric)
        threshold = latents.new_full((len(latents),), self.config.threshold)
        if self.config.reference == "previous":
            if start is not None:
                raise ValueError("the reference 'previous' has no cache for streams: use 'last_kept'")
            keep = torch.cat([torch.ones_like(tokens.keep[:, :1]), changes(latents) >= threshold[:, None, None]], 1)
        else:
            keep = walk(latents, threshold, before)
        return replace(tokens, keep=tokens.keep & keep)


class BudgetedRedundancy:
    """Keeps at most `positions` in every `period` blocks of every clip, the first block of the clip whole.

    The threshold of each clip is searched until the rule keeps no more than that, and the rest is spent on the dropped
    positions farthest from their reference: the budget is met to the token, unless fewer positions differ from their
    reference at all. `period` None is the whole clip; with blocks of a second it bounds the rate of a stream.
    """

    def __init__(self, positions: int, metric: Tensor, *, period: int | None = None) -> None:
        if positions < 1 or (period is not None and period < 1):
            raise ValueError(f"a budget is at least 1 position in at least 1 block, got {positions} in {period}")
        self.positions, self.period, self.metric = positions, period, metric

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        latents = measured(tokens, self.metric)
        blocks, capacity = tokens.keep.shape[1:]
        if self.positions < capacity:
            raise BudgetError(
                f"a budget of {self.positions} positions is below the floor: "
                f"the first block is kept whole, and it has {capacity}"
            )
        parts, keeps = torch.split(latents, self.period or blocks, 1), list[Tensor]()
        known: Reference | None = None
        for part in parts:
            keeps.append(fill_budget(Distances(part, None if known is None else known.latents), self.positions))
            if part is not parts[-1]:
                held, age = last_kept(part, keeps[-1], known)
                known = Reference(held[:, -1], age[:, -1])
        return replace(tokens, keep=tokens.keep & torch.cat(keeps, 1))


def measured(tokens: BlockTokens, metric: Tensor) -> Tensor:
    """(B, G, L, C) latents of tokens, as the metric compares them."""
    if tokens.latents is None:
        raise ValueError("these tokens carry no latents; the redundancy of discrete tokens is not defined")
    if tokens.latents.shape[-1] != len(metric):
        raise ValueError(f"these tokens have {tokens.latents.shape[-1]} channels, the allocator's metric {len(metric)}")
    return by_metric(tokens.latents, metric)


def changes(latents: Tensor) -> Tensor:
    """(B, G, L, C) -> (B, G - 1, L): distance of every latent from the previous one."""
    return (latents[:, 1:] - latents[:, :-1]).abs().mean(-1)


def walk(latents: Tensor, threshold: Tensor, start: Tensor | None) -> Tensor:
    """The rule with the last kept reference: (B, G, L, C) measured latents and (B,) thresholds -> (B, G, L) kept
    positions. `start` (B, L, C): references from before."""
    reference = latents[:, 0] if start is None else start
    least, keeps = latents.shape[-1] * threshold[:, None], []
    for block, latent in enumerate(latents.unbind(1)):
        keep = torch.linalg.vector_norm(latent - reference, 1, -1) >= least
        if block == 0 and start is None:
            keep = torch.ones_like(keep)
        reference = torch.where(keep[..., None], latent, reference)
        keeps.append(keep)
    return torch.stack(keeps, 1)


class Distances:
    """How far every latent is from each of the earlier ones at its position.

    With these the rule can be followed under many thresholds side by side without the latents: what is compared with
    what is then a matter of numbers of blocks. Their count grows with the square of the blocks.
    """

    def __init__(self, latents: Tensor, start: Tensor | None = None) -> None:
        """(B, G, L, C) measured latents; `start` (B, L, C): references from before."""
        self.channels, self._whole = latents.shape[-1], start is None
        blocks = latents if start is None else torch.cat([start[:, None], latents], 1)
        self.shape = (len(latents), latents.shape[2])
        self.device = latents.device
        self.sums = [
            torch.linalg.vector_norm(blocks[:, block, None] - blocks[:, :block], 1, -1)
            for block in range(1, blocks.shape[1])
        ]
        """Of every block but the first: (B, earlier blocks, L), summed over channels."""

    def walk(self, thresholds: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """`walk` under K thresholds (B, K) for each clip. Of every block: kept positions (B, K, L), and the distances
        of all from their references, summed over channels."""
        clips, capacity = self.shape
        shape = (clips, thresholds.shape[1], capacity)
        reference = torch.zeros(shape, dtype=torch.int64, device=self.device)
        if self._whole:
            yield reference == 0, torch.zeros(shape, device=self.device)
        least = self.channels * thresholds[..., None]
        for sums in self.sums:
            distance = sums.gather(1, reference)
            keep = distance >= least
            yield keep, distance
            reference = torch.where(keep, sums.shape[1], reference)

    def count(self, thresholds: Tensor) -> Tensor:
        """(B, K) positions that each clip keeps under each of its thresholds (B, K)."""
        return torch.stack([keep for keep, _ in self.walk(thresholds)]).sum((0, 3))

    def highest(self) -> Tensor:
        """(B,) thresholds that nothing reaches."""
        clips, capacity = self.shape
        none = torch.zeros(clips, 1, capacity, device=self.device)
        most = torch.cat([none, *self.sums], 1).amax((1, 2))
        return 1.001 * most / self.channels + 1e-6


def find_thresholds(distances: Distances, positions: Tensor) -> Tensor:
    """(B,) thresholds under which each clip keeps at most, and nearly, `positions` (B,) positions."""
    high = distances.highest()
    low = torch.zeros_like(high)
    for _ in range(_ROUNDS):
        levels = _between(low, high)
        low, high = _narrow(levels, distances.count(levels) <= positions[:, None], low)
    return high


def fill_budget(distances: Distances, positions: int) -> Tensor:
    """(B, G, L) with `positions` kept in each clip, by ranking: no more, and no fewer while any position differs."""
    wanted = torch.full((distances.shape[0],), positions, device=distances.device)
    walked = list(distances.walk(find_thresholds(distances, wanted)[:, None]))
    keep, distance = (torch.cat(parts, 1) for parts in zip(*walked, strict=True))
    rest = wanted - keep.sum((1, 2))
    score, order = torch.where(keep, -1.0, distance).flatten(1).sort(dim=1, descending=True, stable=True)
    extra = (torch.arange(score.shape[1], device=score.device) < rest[:, None]) & (score > 0)
    return keep | torch.zeros_like(extra).scatter(1, order, extra).view_as(keep)


def calibrate_threshold(latents: list[Tensor], metric: Tensor, rate: float) -> float:
    """The threshold whose mean keep rate over clips of raw latents (B, G, L, C) is nearest below `rate`."""
    if not 0 < rate <= 1:
        raise ValueError(f"a keep rate is in (0, 1], got {rate}")
    floor = max(1 / part.shape[1] for part in latents)
    if rate < floor:
        raise BudgetError(f"a keep rate of {rate:g} is below the floor: the first block alone is {floor:.3g}")
    parts = [Distances(by_metric(part, metric)) for part in latents]
    high = torch.stack([part.highest().amax() for part in parts]).amax()[None]
    low = torch.zeros_like(high)
    total = sum(part[..., 0].numel() for part in latents)
    for _ in range(_ROUNDS):
        levels = _between(low, high)
        kept = torch.stack([part.count(levels.expand(part.shape[0], -1)).sum(0) for part in parts]).sum(0)
        low, high = _narrow(levels, (kept <= rate * total)[None], low)
    return float(high) if rate < 1 else 0.0


def _between(low: Tensor, high: Tensor) -> Tensor:
    """(N,) bounds -> (N, K) levels that rise to `high` itself."""
    share = torch.arange(1, _LEVELS + 1, device=low.device) / _LEVELS
    return torch.cat([(low[:, None] + (high - low)[:, None] * share)[:, :-1], high[:, None]], 1)


def _narrow(levels: Tensor, fits: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest level that fits, of which the last always does, and the one below it: (N,) new bounds."""
    first = fits.long().argmax(1, keepdim=True)
    below = torch.cat([low[:, None], levels[:, :-1]], 1)
    return below.gather(1, first)[:, 0], levels.gather(1, first)[:, 0]
