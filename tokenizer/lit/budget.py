"""Allocators that minimise the error of copying kept latents forward, under a price or a budget.

A kept latent is copied until the next one is kept at its position. It is sent as the mean of this interval, which has
the least squared error. The kept latents of a position form a shortest path from its first latent to the end of the
clip: each stop costs a price, each interval the squared distances from its mean (Bellman 1961). For a price, no other
choice of as many latents has a smaller total error (Everett 1963; Shoham and Gersho 1988). `PriceAllocator` sets one
price for all clips, so the rate follows the content; `BudgetAllocator` gives every clip the same number of latents.

The paper (arXiv 2606.06158) has a threshold and no budget, and sends latents unchanged. A threshold is causal; these
paths look ahead to the end of the clip, or in a stream of the chunk. The receiver is causal in all cases. With
`means=False` latents are sent unchanged, and an interval costs the squared distances from its first latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from genvid.allocation import Allocator, Budget, BudgetError
from genvid.tokenizer.lit.metric import by_metric
from genvid.tokenizer.lit.redundancy import measured, positions_at
from genvid.tokenizer.lit.reference import Reference, interval_means, last_reference
from genvid.tokens import BlockTokens
from genvid.tokens.blocks import MeanTokens


class PathAllocator(ABC):
    """Keeps the latents on the cheapest paths, and all of the first block of a clip.

    Paths are found for `period` blocks at a time (None: all blocks of a call), from these blocks and earlier ones. In a
    stream each chunk begins a period.
    """

    def __init__(self, metric: Tensor, *, period: int | None = None, means: bool = True) -> None:
        """`metric` (C, C) is that of the codec."""
        if period is not None and period < 1:
            raise ValueError(f"a period is at least 1 block, got {period}")
        self.metric, self.period, self.means = metric, period, means

    @abstractmethod
    def choose(self, paths: Paths) -> Tensor:
        """Paths of a period -> (B, G, L) kept latents."""

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        return self.allocate_chunk(tokens, None)

    def allocate_chunk(self, tokens: BlockTokens, start: Reference | None) -> BlockTokens:
        """Thin the next blocks of a stream. `start`: the receiver's last latents (means, if means are sent)."""
        latents, period = measured(tokens, self.metric), self.period or tokens.keep.shape[1]
        assert tokens.latents is not None
        keeps, sent = list[Tensor](), list[Tensor]()
        for raw, part in zip(*(torch.split(x, period, 1) for x in (tokens.latents, latents)), strict=True):
            if keeps:
                start = last_reference(sent[-1], keeps[-1], start)
            known = None if start is None else by_metric(start.latents, self.metric)
            keeps.append(self.choose(Paths(part, known, means=self.means)))
            sent.append(interval_means(raw, keeps[-1]) if self.means else raw)
        kind = MeanTokens if self.means else BlockTokens
        return kind(torch.cat(keeps, 1), tokens.codes, torch.cat(sent, 1), tokens.features)


class PriceAllocator(PathAllocator):
    """Keeps the latents that save more than a price. The rate follows the content.

    Over all clips that share the price, no other choice of as many latents has a smaller total error.
    """

    def __init__(self, price: float, metric: Tensor, *, period: int | None = None, means: bool = True) -> None:
        """`price`: a squared distance by the metric, in squared standard deviations."""
        if not price >= 0:
            raise ValueError(f"the price of a latent is at least 0, got {price}")
        super().__init__(metric, period=period, means=means)
        self.price = price

    def choose(self, paths: Paths) -> Tensor:
        return paths.at_price(paths.savings.new_full((len(paths.savings),), self.price))


def calibrate_prices(
    latents: Sequence[Tensor], rates: Sequence[float], metric: Tensor, *, means: bool = True
) -> list[float]:
    """Keep rates -> for each the price with the highest mean keep rate, at most that rate, over clips of raw latents
    (B, G, L, C)."""
    first = sum(part[:, 0, :, 0].numel() for part in latents)
    bought = [positions_at(latents, rate) - first for rate in rates]
    savings = torch.cat([Paths(by_metric(part, metric), means=means).savings.flatten() for part in latents])
    savings = F.pad(savings.sort(descending=True).values, (0, 1))
    return savings[bought].tolist()


class BudgetAllocator(PathAllocator):
    """Keeps exactly `positions` latents of every clip, or of every `period` blocks of it; fewer only where no more
    reduce the error."""

    def __init__(self, positions: int, metric: Tensor, *, period: int | None = None, means: bool = True) -> None:
        if positions < 1:
            raise ValueError(f"a budget is at least 1 position, got {positions}")
        super().__init__(metric, period=period, means=means)
        self.positions = positions

    def choose(self, paths: Paths) -> Tensor:
        check_floor(self.positions, paths.floor)
        positions = min(self.positions, paths.floor + paths.savings[0].numel())  # more could not be kept
        return paths.at_budget(paths.savings.new_full((len(paths.savings),), positions, dtype=torch.int64))


class ClipBudget(Budget):
    """Tokens of every clip; those of a video are shared among its clips (`clip_shares`)."""

    def __init__(self, tokens: int, metric: Tensor, floor: int) -> None:
        """`floor`: tokens of the first block of a clip, which keeps all."""
        check_floor(tokens, floor)
        self.tokens, self.metric, self.floor = tokens, metric, floor

    def allocator(self, blocks: int) -> Allocator:
        return BudgetAllocator(self.tokens, self.metric)

    def video_allocators(self, blocks: Sequence[int]) -> list[tuple[int, Allocator]]:
        return [(1, BudgetAllocator(share, self.metric)) for share in clip_shares(self.tokens, blocks, self.floor)]


def clip_shares(tokens: int, blocks: Sequence[int], floor: int) -> list[int]:
    """Tokens of a video -> of each of its clips: `floor` for the first block, which is complete, and the rest in
    proportion to the other blocks. No clip has more than it can keep while another lacks them."""
    check_floor(tokens, floor, len(blocks))
    rest, ends = tokens - floor * len(blocks), [0, *accumulate(count - 1 for count in blocks)]
    others = max(1, ends[-1])
    return [floor + rest * end // others - rest * start // others for start, end in pairwise(ends)]


def check_floor(tokens: int, floor: int, clips: int = 1) -> None:
    """BudgetError for fewer tokens than the first blocks of so many clips have, of `floor` tokens each."""
    if tokens < clips * floor:
        raise BudgetError(
            f"a budget of {tokens} tokens is below the floor of {clips * floor}: the first block of every clip is "
            f"complete, and has {floor}"
        )


class Paths:
    """The shortest paths of all positions for every number of kept latents, by dynamic programming.

    Time is cubic and memory quadratic in the number of blocks: long videos are thinned in periods.
    """

    def __init__(self, latents: Tensor, start: Tensor | None = None, *, means: bool = True) -> None:
        """(B, G, L, C) latents by the metric. `start` (B, L, C): references from before, stops without a price; None:
        the first block is complete. `means`: intervals are sent as their means."""
        self._begins = start is None
        stops = latents if start is None else torch.cat([start[:, None], latents], 1)
        stops, channels = stops.transpose(1, 2), stops.shape[3]
        self._count = stops.shape[2]
        # Exact zeros for equal latents, where matrix products leave rounding errors.
        errors = torch.cdist(stops, stops, compute_mode="donot_use_mm_for_euclid_dist").square() / channels
        errors, at = errors.tril(-1), torch.arange(self._count + 1, device=errors.device)
        # (B, L, stop or end, earlier stop): the error of dropping all latents between.
        passing = errors.cumsum(2)
        if means:  # the sum of squared distances from the mean is that over all pairs, divided by their number
            pairs = errors.flip(-1).cumsum(-1).flip(-1).cumsum(2) / (at[1:, None] - at[:-1]).clamp(min=1)
            passing = pairs if start is None else torch.cat([passing[..., :1], pairs[..., 1:]], -1)
        passing = F.pad(passing, (0, 0, 1, 0)).masked_fill(at[:, None] <= at[:-1], torch.inf)
        self._before: list[Tensor] = []
        """For 1, 2, ... stops in between: the last of them on the cheapest path to every stop and to the end."""
        cost = passing[..., 0]
        ends = [cost[..., -1]]
        for _ in range(self._count - 1):
            cost, before = (cost[..., None, :-1] + passing).min(-1)
            self._before.append(before)
            ends.append(cost[..., -1])
        self.savings = _hull_slopes(torch.stack(ends, -1))
        """(B, L, count - 1): the error that a first stop after the start saves, a second one more, and so on, never
        increasing: the slopes of the lower convex hull."""

    @property
    def floor(self) -> int:
        """Positions kept at any price: those of the first block, without references from before."""
        return self.savings.shape[1] if self._begins else 0

    def at_price(self, prices: Tensor) -> Tensor:
        """(B,) prices -> (B, G, L) kept latents: those that save more than the price."""
        return self._follow((self.savings > prices[:, None, None]).sum(-1))

    def at_budget(self, positions: Tensor) -> Tensor:
        """(B,) numbers of latents -> (B, G, L) kept latents: that many of each clip, or all that save anything."""
        savings, order = self.savings.flatten(1).sort(stable=True, dim=1, descending=True)
        bought = torch.arange(savings.shape[1], device=savings.device) < self._bought(positions)
        chosen = torch.zeros_like(bought).scatter(1, order, bought & (savings > 0))
        return self._follow(chosen.view_as(self.savings).sum(-1))

    def prices(self, positions: Tensor) -> Tensor:
        """(B,) numbers of latents -> (B,) prices at which `at_price` keeps that many, or fewer in ties."""
        savings = F.pad(self.savings.flatten(1).sort(1, descending=True).values, (0, 1))
        return savings.gather(1, self._bought(positions).clamp(max=savings.shape[1] - 1))[:, 0]

    def _bought(self, positions: Tensor) -> Tensor:
        """(B,) numbers of latents -> (B, 1) without the first block, if it is complete."""
        return (positions - self.floor)[:, None]

    def _follow(self, numbers: Tensor) -> Tensor:
        """(B, L) numbers of stops after the first -> (B, G, L) their blocks, followed back from the end."""
        numbers = numbers[..., None]
        at, visited = torch.full_like(numbers, self._count), [torch.zeros_like(numbers)]
        for number in range(self._count - 1, 0, -1):
            at = torch.where(numbers >= number, self._before[number - 1].gather(-1, at), at)
            visited.append(at)
        keep = numbers.new_zeros(*numbers.shape[:2], self._count + 1, dtype=torch.bool)
        keep = keep.scatter(-1, torch.cat(visited, -1), True)[..., :-1].transpose(1, 2)
        return keep if self._begins else keep[:, 1:]


def _hull_slopes(errors: Tensor) -> Tensor:
    """(..., N) errors with 0, 1, ... stops -> (..., N - 1) negated slopes of their lower convex hull."""
    count = torch.arange(errors.shape[-1], device=errors.device)
    steps = count - count[:, None]  # from a row's number of stops to a column's
    slopes = (errors[..., :, None] - errors[..., None, :]) / steps.clamp(min=1)
    steepest = slopes.masked_fill(steps <= 0, -torch.inf).flip(-1).cummax(-1).values.flip(-1)  # to a column or beyond
    return steepest.masked_fill(steps <= 0, torch.inf).amin(-2)[..., 1:]
