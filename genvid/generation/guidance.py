"""Guidance schedules: the scale of classifier-free guidance (arXiv 2207.12598) of the next token, as a function of the
place where it is drawn.

The first tokens of a block carry most of its content, so a schedule by place can guide them most.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genvid.config import Choice

LARGEST_SCALE = 1e6
"""Largest guidance and temperature, and inverse of the least temperature: beyond, float32 logits overflow."""


class Progress(NamedTuple):
    """Where the next token of each row is drawn; tensors of one shape."""

    block: Tensor
    """Complete blocks before it, those of a prompt not counted."""
    tokens: Tensor
    """Codes of its block before it."""
    share: Tensor
    """Share of the row before it in [0, 1), float32: each block counts the same, and in a block each code."""


@dataclass(frozen=True)
class Guidance(Choice):  # type: ignore[misc]
    """A scale w for each token: logits are null + w (conditional - null); 1 is no guidance."""

    def __post_init__(self) -> None:
        if not self._scales() or not all(0 <= scale <= LARGEST_SCALE for scale in self._scales()):
            raise ValueError(f"scales of guidance are from 0 to {LARGEST_SCALE:g}, got {self}")

    @abstractmethod
    def scale(self, progress: Progress) -> Tensor:
        """float32 scales, of the shape of the tensors of `progress`."""

    @abstractmethod
    def _scales(self) -> tuple[float, ...]:
        """The scales among which the schedule moves."""


@Guidance.register_subclass("constant")
@dataclass(frozen=True)
class Constant(Guidance):
    """One scale everywhere."""

    value: float = 1.5

    def scale(self, progress: Progress) -> Tensor:
        return torch.full_like(progress.share, self.value)

    def _scales(self) -> tuple[float, ...]:
        return (self.value,)


@Guidance.register_subclass("by_tokens")
@dataclass(frozen=True)
class ByTokens(Guidance):
    """By the codes already in the block: scales[i] before the ends[i]-th code, the last scale from then on.

    The defaults are those that VideoFlexTok publishes for numbers of tokens.
    """

    scales: tuple[float, ...] = (3.0, 2.0, 1.0)
    ends: tuple[int, ...] = (4, 32)

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending = sorted({end for end in self.ends if end >= 1})
        if len(self.scales) != len(self.ends) + 1 or list(self.ends) != ascending:
            raise ValueError(f"guidance by_tokens has one scale more than ends, which ascend from 1; got {self}")

    def scale(self, progress: Progress) -> Tensor:
        scale = torch.full_like(progress.share, self.scales[-1])
        for end, value in zip(reversed(self.ends), reversed(self.scales[:-1]), strict=True):
            scale = scale.masked_fill(progress.tokens < end, value)
        return scale

    def _scales(self) -> tuple[float, ...]:
        return self.scales


@Guidance.register_subclass("by_block")
@dataclass(frozen=True)
class ByBlock(Guidance):
    """By the block of the video; the last scale is that of all later blocks too."""

    scales: tuple[float, ...] = (2.0, 1.5)

    def scale(self, progress: Progress) -> Tensor:
        scale = torch.full_like(progress.share, self.scales[-1])
        for block, value in enumerate(self.scales[:-1]):
            scale = scale.masked_fill(progress.block == block, value)
        return scale

    def _scales(self) -> tuple[float, ...]:
        return self.scales


@Guidance.register_subclass("power_cosine")
@dataclass(frozen=True)
class PowerCosine(Guidance):
    """From 1 at the start of a row to `peak` at its end: 1 + (peak - 1) (1 - cos(pi share^power)) / 2.

    The schedule over steps of RAR (arXiv 2411.00776), whose rows are of one length; here over the share of a row.
    """

    peak: float = 4.0
    power: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.power < math.inf:
            raise ValueError(f"the power of guidance power_cosine is above 0, got {self.power}")

    def scale(self, progress: Progress) -> Tensor:
        return 1 + (self.peak - 1) * (1 - (math.pi * progress.share**self.power).cos()) / 2

    def _scales(self) -> tuple[float, ...]:
        return (self.peak,)


def by_name(name: str) -> Guidance:
    """The schedule of a name, with its defaults."""
    known = Guidance.get_known_choices()
    if name not in known:
        raise ValueError(f"guidance is a number, or a schedule of the names {', '.join(known)}; got {name!r}")
    schedule: Guidance = known[name]()
    return schedule


def guided(logits: Tensor, scale: Tensor) -> Tensor:
    """(2B, ..., V) logits, conditional then null, and (B, ...) scales -> (B, ..., V)."""
    conditional, null = logits.chunk(2)
    return null + scale[..., None] * (conditional - null)
