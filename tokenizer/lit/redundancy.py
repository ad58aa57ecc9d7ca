"""The redundancy allocator: a position is dropped while its latent stays near the last one that was kept there.

Nothing is learned and nothing is searched (arXiv 2606.06158, of which only the abstract is certain): one pass over the
temporal L1 differences of the latents. The difference is the mean over channels, each divided by its standard
deviation, so one threshold means the same on every codec.

`RedundancyAllocator` has a threshold and lets the rate follow from the content. `BudgetedRedundancy` keeps exactly a
given number of positions: our addition, the paper has no budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from genvid.allocation import BudgetError
from genvid.tokenizer.lit.reference import Reference, last_kept
from genvid.tokens import BlockTokens

_ROUNDS, _LEVELS = 2, 64
"""A threshold is searched in rounds of so many levels side by side: on a GPU a round costs as much as one level."""


@dataclass(frozen=True)
class RedundancyConfig:
    """A threshold on the scaled temporal difference. `reference` last_kept bounds the drift, previous does not."""

    threshold: float
    reference: Literal["last_kept", "previous"] = "last_kept"

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"a redundancy threshold is at least 0, got {self.threshold}")


class RedundancyAllocator:
    """Keeps a latent that is at least `threshold` away from its reference; the first block whole. Causal."""

    def __init__(self, config: RedundancyConfig, scale: Tensor) -> None:
        """`scale` (C,): standard deviation of each latent channel."""
        self.config, self.scale = config, scale

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        return self.continued(tokens, None)

    def continued(self, tokens: BlockTokens, start: Reference | None) -> BlockTokens:
        """The next blocks of a stream whose past left `start`; its first block needs no reference in itself then."""
        latents = scaled(tokens, self.scale)
        before = None if start is None else start.latents / self.scale.to(start.latents)
        threshold = latents.new_full((len(latents),), self.config.threshold)
        if self.config.reference == "previous":
            if start is not None:
                raise ValueError("the reference 'previous' has no cache for streams: use 'last_kept'")
            keep = torch.cat([torch.ones_like(tokens.keep[:, :1]), changes(latents) >= threshold[:, None, None]], 1)
        else:
            keep = walk(latents, threshold, before)[0]
        return replace(tokens, keep=tokens.keep & keep)


class BudgetedRedundancy:
    """Keeps at most `positions` in every `period` blocks of every clip, the first block of the clip whole.

    The threshold of each clip is searched until the rule keeps no more than that, and the rest is spent on the dropped
    positions farthest from their reference: the budget is met to the token, unless fewer positions differ from their
    reference at all. `period` None is the whole clip; with blocks of a second it bounds the rate of a stream.
    """

    def __init__(self, positions: int, scale: Tensor, *, period: int | None = None) -> None:
        if positions < 1 or (period is not None and period < 1):
            raise ValueError(f"a budget is at least 1 position in at least 1 block, got {positions} in {period}")
        self.positions, self.period, self.scale = positions, period, scale

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        latents = scaled(tokens, self.scale)
        blocks, capacity = tokens.keep.shape[1:]
        if self.positions < capacity:
            raise BudgetError(
                f"a budget of {self.positions} positions is below the floor: "
                f"the first block is kept whole, and it has {capacity}"
            )
        period, parts = self.period or blocks, []
        before: Tensor | None = None
        for start in range(0, blocks, period):
            part = latents[:, start : start + period]
            keep = fill_budget(part, self.positions, before)
            reference = None if before is None else Reference(before, keep.new_zeros(keep[:, 0].shape).long())
            before = last_kept(part, keep, reference)[0][:, -1]
            parts.append(keep)
        return replace(tokens, keep=tokens.keep & torch.cat(parts, 1))


def scaled(tokens: BlockTokens, scale: Tensor) -> Tensor:
    """(B, G, L, C) float32 latents, each channel over its standard deviation."""
    if tokens.latents is None:
        raise ValueError("these tokens carry no latents; the redundancy of discrete tokens is not defined")
    if tokens.latents.shape[-1] != len(scale):
        raise ValueError(f"these tokens have {tokens.latents.shape[-1]} channels, the allocator scales {len(scale)}")
    return tokens.latents.float() / scale.to(tokens.latents.device, torch.float32)


def changes(latents: Tensor) -> Tensor:
    """(B, G, L, C) -> (B, G - 1, L): distance of every latent from the previous one."""
    return (latents[:, 1:] - latents[:, :-1]).abs().mean(-1)


def walk(latents: Tensor, threshold: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rule with the last kept reference: (B, G, L, C) scaled latents and (B,) thresholds -> (B, G, L) kept
    positions, and the distance of each from its reference. `start` (B, L, C): references from before.

    With latents (B, G, 1, L, C) and start (B, 1, L, C), K thresholds (B, K) for each clip -> (B, G, K, L).
    """
    reference = latents[:, 0] if start is None else start
    channels = latents.shape[-1]
    least = channels * threshold[..., None]
    keeps, distances = [], []
    for block, latent in enumerate(latents.unbind(1)):
        distance = torch.linalg.vector_norm(latent - reference, 1, -1)
        keep = distance >= least
        if block == 0 and start is None:
            keep = torch.ones_like(keep)
        reference = torch.where(keep[..., None], latent, reference)
        keeps.append(keep)
        distances.append(distance.expand_as(keep))
    return torch.stack(keeps, 1), torch.stack(distances, 1) / channels


def find_thresholds(latents: Tensor, positions: Tensor, start: Tensor | None) -> Tensor:
    """(B,) thresholds under which each clip keeps at most, and nearly, `positions` (B,) positions."""
    low = latents.new_zeros(len(latents))
    high = _spread(latents, start).mean(-1) + 1e-6
    for _ in range(_ROUNDS):
        levels = _between(low, high)
        fits = _count(latents, levels, start) <= positions[:, None]
        low, high = _narrow(levels, fits, low)
    return high


def fill_budget(latents: Tensor, positions: int, start: Tensor | None) -> Tensor:
    """(B, G, L) with `positions` kept in each clip, by ranking: no more, and no fewer while any position differs."""
    wanted = torch.full((len(latents),), positions, device=latents.device)
    keep, distance = walk(latents, find_thresholds(latents, wanted, start), start)
    rest = wanted - keep.sum((1, 2))
    score = torch.where(keep, -1.0, distance).flatten(1)
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    extra = (rank < rest[:, None]) & (score > 0)
    return keep | extra.view_as(keep)


def calibrate_threshold(latents: list[Tensor], scale: Tensor, rate: float) -> float:
    """The threshold whose mean keep rate over clips of raw latents (B, G, L, C) is nearest below `rate`."""
    if not 0 < rate <= 1:
        raise ValueError(f"a keep rate is in (0, 1], got {rate}")
    parts = [part.float() / scale.to(part.device, torch.float32) for part in latents]
    floor = max(1 / part.shape[1] for part in parts)
    if rate < floor:
        raise BudgetError(f"a keep rate of {rate:g} is below the floor: the first block alone is {floor:.3g}")
    low = parts[0].new_zeros(1)
    high = torch.stack([_spread(part, None).mean(-1).amax() for part in parts]).amax()[None] + 1e-6
    total = sum(part[..., 0].numel() for part in parts)
    for _ in range(_ROUNDS):
        levels = _between(low, high)
        kept = torch.stack([_count(part, levels.expand(len(part), -1), None).sum(0) for part in parts]).sum(0)
        low, high = _narrow(levels, (kept <= rate * total)[None], low)
    return float(high) if rate < 1 else 0.0


def _count(latents: Tensor, levels: Tensor, start: Tensor | None) -> Tensor:
    """(B, K) positions that each clip keeps under each of its thresholds `levels` (B, K)."""
    return walk(latents[:, :, None], levels, None if start is None else start[:, None])[0].sum((1, 3))


def _between(low: Tensor, high: Tensor) -> Tensor:
    """(N,) bounds -> (N, K) levels that rise to `high` itself."""
    share = torch.arange(1, _LEVELS + 1, device=low.device) / _LEVELS
    return torch.cat([(low[:, None] + (high - low)[:, None] * share)[:, :-1], high[:, None]], 1)


def _narrow(levels: Tensor, fits: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest level that fits, of which the last always does, and the one below it: (N,) new bounds."""
    first = fits.long().argmax(1, keepdim=True)
    below = torch.cat([low[:, None], levels[:, :-1]], 1)
    return below.gather(1, first)[:, 0], levels.gather(1, first)[:, 0]


def _spread(latents: Tensor, start: Tensor | None) -> Tensor:
    """(B, C) range of each channel, over clip and references: no distance is larger than its mean."""
    flat = latents.flatten(1, 2) if start is None else torch.cat([latents.flatten(1, 2), start], 1)
    return flat.amax(1) - flat.amin(1)
