"""Tail drop: kept tokens of each block in training, from a truncated normal (arXiv 2505.17011)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, fmean

import torch
from torch import Tensor

from genvid import noise


@dataclass(frozen=True)
class TailDropConfig:
    """Normal(mean, std) truncated to [minimum, maximum], rounded; all in tokens per block."""

    mean: float = 256
    std: float = 128
    minimum: int = 32
    maximum: int = 512

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.maximum:
            raise ValueError(f"tail_drop needs 1 <= minimum <= maximum, got {self.minimum} and {self.maximum}")
        if self.std <= 0:
            raise ValueError(f"tail_drop.std must be positive, got {self.std}")
        low, high = self.bounds
        if self.minimum < self.maximum and (not high or low == 1):
            raise ValueError(f"tail_drop draws nothing between minimum and maximum: move its mean there, got {self}")

    def check(self, capacity: int) -> None:
        """ValueError where it draws more tokens than a block has, which would leave blocks uncut."""
        if self.maximum > capacity:
            raise ValueError(f"tail_drop.maximum {self.maximum} exceeds the tokenizer's block_capacity {capacity}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Values of the distribution function at minimum and maximum."""
        normal = NormalDist(self.mean, self.std)
        return normal.cdf(self.minimum), normal.cdf(self.maximum)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def most_kept(self, clips: int, blocks: int) -> int:
        """Tokens that `clips` of so many blocks keep at most in a training step: five standard deviations above the
        mean, which one batch in three million exceeds, in multiples of 128. Multiples of `noise.STRATA` clips of a
        batch deviate less, as their lengths are drawn evenly."""
        if self.minimum == self.maximum:
            return clips * blocks * self.maximum
        strata = noise.STRATA if clips % noise.STRATA == 0 else 1
        low, high = self.bounds
        ends = [low + (high - low) * part / strata for part in range(strata + 1)]
        means, variances = zip(*(self._moments(*part) for part in pairwise(ends)), strict=True)
        most = clips * blocks * fmean(means) + 5 * math.sqrt(clips * blocks * fmean(variances))
        return min(clips * blocks * self.maximum, 128 * math.ceil(most / 128))

    def _moments(self, low: float, high: float) -> tuple[float, float]:
        """Mean and variance of the part of the normal between two values of its distribution function."""
        normal = NormalDist()
        ends = [normal.inv_cdf(min(max(end, 1e-300), 1 - 2.0**-53)) for end in (low, high)]
        heights = [normal.pdf(end) / (high - low) for end in ends]
        shift = heights[0] - heights[1]
        spread = 1 + ends[0] * heights[0] - ends[1] * heights[1] - shift**2
        return self.mean + self.std * shift, self.std**2 * max(spread, 0)

    def scaled(self, share: float) -> TailDropConfig:
        """The same shares of blocks of `share` times as many tokens."""
        if share == 1:
            return self
        minimum, maximum = max(1, round(self.minimum * share)), round(self.maximum * share)
        return TailDropConfig(self.mean * share, self.std * share, minimum, maximum)


def sample_lengths(config: TailDropConfig, seeds: Tensor, num_blocks: int) -> Tensor:
    """(B,) clip seeds -> (B, G) int64 lengths, by inversion of the truncated normal's distribution function.

    Those of each block are drawn evenly over the clips of a batch (`noise.stratified`), where the published training
    draws each by itself: the lengths of one clip have the same distribution, and batches differ less in their tokens.
    """
    low, high = config.bounds
    position = low + noise.stratified(seeds, "tail drop", num_blocks) * (high - low)
    lengths: Tensor = config.mean + config.std * torch.special.ndtri(position)
    return lengths.round().long().clamp(config.minimum, config.maximum)


def at_most(lengths: Tensor, tokens: int) -> Tensor:
    """(B, G) lengths, of which the last are shortened where all are more than `tokens`."""
    ends = lengths.flatten().cumsum(0).clamp(max=tokens)
    return ends.diff(prepend=ends.new_zeros(1)).view_as(lengths)
