"""The redundancy allocator: drops a latent while it is near the last one kept at its position.

One causal pass over temporal differences of latents against a threshold (arXiv 2606.06158, of which only the abstract
was at hand); the rate follows the content. With the complete clip at hand, `genvid.tokenizer.lit.budget` has a smaller
error at the same rate.

The paper takes the L1 difference. Ours is the root mean square over channels by the codec's metric
(genvid.tokenizer.lit.metric): the change of the decoded pixels, in standard deviations, comparable across codecs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from genvid.allocation import Allocator, BudgetError
from genvid.tokenizer.lit.metric import by_metric
from genvid.tokenizer.lit.reference import Reference
from genvid.tokens import BlockTokens

_PRECISION, _LEAST = 1e-9, 1e-20
"""Relative precision of the threshold search, and its lower bound."""


@dataclass(frozen=True)
class RedundancyConfig:
    """A threshold on temporal differences. The reference last_kept bounds the drift, previous does not."""

    threshold: float
    reference: Literal["last_kept", "previous"] = "last_kept"

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"a redundancy threshold is at least 0, got {self.threshold}")


class RedundancyAllocator:
    """Keeps the latents at least `threshold` away from their references, and all of the first block. Causal."""

    def __init__(self, config: RedundancyConfig, metric: Tensor) -> None:
        """`metric` (C, C): that of the codec."""
        self.config, self.metric = config, metric

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        return self.allocate_chunk(tokens, None)

    def allocate_chunk(self, tokens: BlockTokens, start: Reference | None) -> BlockTokens:
        """Thin the next blocks of a stream. `start`: the last kept latents of the earlier ones."""
        latents = measured(tokens, self.metric)
        before = None if start is None else by_metric(start.latents, self.metric)
        threshold = latents.new_full((len(latents),), self.config.threshold)
        if self.config.reference == "previous":
            if start is not None:
                raise ValueError("the reference 'previous' has no cache for streams: use 'last_kept'")
            far = distances(latents[:, 1:], latents[:, :-1]) >= threshold[:, None, None]
            keep = torch.cat([torch.ones_like(tokens.keep[:, :1]), far], 1)
        else:
            keep = walk(latents, threshold, before)
        return replace(tokens, keep=keep)


def measured(tokens: BlockTokens, metric: Tensor) -> Tensor:
    """(B, G, L, C) latents of tokens by the metric."""
    check_complete(tokens)
    if tokens.latents is None:
        raise ValueError("these tokens have no latents: only tokens of a continuous codec can be thinned by redundancy")
    if tokens.latents.shape[-1] != len(metric):
        raise ValueError(f"these tokens have {tokens.latents.shape[-1]} channels, the allocator's metric {len(metric)}")
    if not bool(tokens.latents.isfinite().all()):
        raise ValueError("the latents hold NaN or infinity; check the video and the codec")
    return by_metric(tokens.latents, metric)


def check_complete(tokens: BlockTokens) -> None:
    """ValueError for tokens that were thinned before: their dropped latents must not be read."""
    if not bool(tokens.keep.all()):
        raise ValueError("these tokens were thinned already: thin the tokens from `encode`")


def distances(latents: Tensor, references: Tensor) -> Tensor:
    """(..., C) latents by the metric -> (...) distances from their references, in standard deviations."""
    lengths: Tensor = torch.linalg.vector_norm(latents - references, dim=-1)
    return lengths / math.sqrt(latents.shape[-1])


def walk(latents: Tensor, threshold: Tensor, start: Tensor | None) -> Tensor:
    """(B, G, L, C) latents by the metric and (B,) thresholds -> (B, G, L) kept ones, by distance from the last one kept
    at a position. `start` (B, L, C): references from before the first block."""
    reference, keeps = latents[:, 0] if start is None else start, []
    for block, latent in enumerate(latents.unbind(1)):
        keep = distances(latent, reference) >= threshold[:, None]
        if block == 0 and start is None:
            keep = torch.ones_like(keep)
        reference = torch.where(keep[..., None], latent, reference)
        keeps.append(keep)
    return torch.stack(keeps, 1)


def positions_at(latents: Sequence[Tensor], rate: float) -> int:
    """Keep rate -> number of kept positions of clips (B, G, L, C). BudgetError below the first block's share."""
    if not 0 < rate <= 1:
        raise ValueError(f"a keep rate is in (0, 1], got {rate}")
    floor = max(1 / part.shape[1] for part in latents)
    if rate < floor:
        raise BudgetError(f"a keep rate of {rate:g} is below the floor: the first block alone is {floor:.3g}")
    return round(rate * sum(part[..., 0].numel() for part in latents))


def calibrate_threshold(latents: Sequence[Tensor], rate: float, allocator: Callable[[float], Allocator]) -> float:
    """The threshold with the highest mean keep rate, at most `rate`, over clips of raw latents (B, G, L, C).

    `allocator` makes the allocator of a threshold, or of a price.
    """
    wanted = positions_at(latents, rate)
    if rate == 1:
        return 0.0
    clips = [BlockTokens(torch.ones_like(part[..., 0], dtype=torch.bool), latents=part) for part in latents]

    def fits(threshold: float) -> bool:
        cut = allocator(threshold)
        return sum(int(cut(tokens).keep.sum()) for tokens in clips) <= wanted

    low, high = 0.0, 1.0
    while not fits(high):
        low, high = high, 2 * high
    while high - low > _PRECISION * high and high > _LEAST:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
