"""Budgets of latents, spent where copying forward would lose the most.

A kept latent serves until the next one is kept at its position, so it is best sent as the mean of all that it stands
for. What a position keeps is then a shortest path from its first latent to the end of the clip: to stop at a latent has
a price, and an interval between stops costs the squared distances from its mean (Bellman 1961). Under one price no
choice of as many latents has a smaller total error (Everett 1963; Shoham and Gersho 1988). One price for all clips
spends on each what it needs (`PriceAllocator`); or each clip buys what saves the most until its own budget is spent
(`BudgetAllocator`).

The paper (arXiv 2606.06158) has a threshold and no budget, and sends latents as they are. A threshold does not look
ahead, so it cannot know how long a latent will serve; an encoder can that has the whole clip, or of a stream the whole
chunk. The receiver is causal in both cases. `means=False` sends latents as they are: intervals then cost the distances
from their first.
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
from genvid.tokenizer.lit.reference import MeanTokens, Reference, interval_means, last_reference
from genvid.tokens import BlockTokens


class PathAllocator(ABC):
    """Keeps what is on the cheapest paths; the first block of a clip whole.

    `period` blocks are cut at a time, None is all that are given. What a period sends depends on the past and on itself
    alone: a stream is cut as it comes, and each of its chunks begins a period.
    """

    def __init__(self, metric: Tensor, *, period: int | None = None, means: bool = True) -> None:
        """`metric` (C, C) is that of the codec."""
        if period is not None and period < 1:
            raise ValueError(f"a period is at least 1 block, got {period}")
        self.metric, self.period, self.means = metric, period, means

    @abstractmethod
    def choose(self, paths: Paths) -> Tensor:
        """(B, G, L): what is kept of a period, by its paths."""

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        return self.allocate_chunk(tokens, None)

    def allocate_chunk(self, tokens: BlockTokens, start: Reference | None) -> BlockTokens:
        """The next blocks of a stream whose past left `start`: what the receiver has, means where means are sent."""
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
    """Keeps what saves more than it costs. The rate follows from the content.

    Of all clips that are cut at once under one price, no choice of as many latents in all has a smaller total error.
    """

    def __init__(self, price: float, metric: Tensor, *, period: int | None = None, means: bool = True) -> None:
        """`price` is a squared distance, in squared standard deviations."""
        if not price >= 0:
            raise ValueError(f"the price of a latent is at least 0, got {price}")
        super().__init__(metric, period=period, means=means)
        self.price = price

    def choose(self, paths: Paths) -> Tensor:
        return paths.at_price(paths.savings.new_full((len(paths.savings),), self.price))


def calibrate_prices(
    latents: Sequence[Tensor], rates: Sequence[float], metric: Tensor, *, means: bool = True
) -> list[float]:
    """For each of `rates` the price under which the mean keep rate over clips of raw latents (B, G, L, C) is nearest
    below it."""
    first = sum(part[:, 0, :, 0].numel() for part in latents)
    bought = [positions_at(latents, rate) - first for rate in rates]
    savings = torch.cat([Paths(by_metric(part, metric), means=means).savings.flatten() for part in latents])
    savings = F.pad(savings.sort(descending=True).values, (0, 1))
    return savings[bought].tolist()


class BudgetAllocator(PathAllocator):
    """Keeps at most `positions` of every clip, or of every `period` blocks of it: met to the token, unless fewer leave
    nothing to save."""

    def __init__(self, positions: int, metric: Tensor, *, period: int | None = None, means: bool = True) -> None:
        if positions < 1:
            raise ValueError(f"a budget is at least 1 position, got {positions}")
        super().__init__(metric, period=period, means=means)
        self.positions = positions

    def choose(self, paths: Paths) -> Tensor:
        check_floor(self.positions, paths.floor)
        return paths.at_budget(paths.savings.new_full((len(paths.savings),), self.positions, dtype=torch.int64))


class ClipBudget(Budget):
    """Tokens of every clip; those of a video are shared among its clips in proportion to their blocks."""

    def __init__(self, tokens: int, metric: Tensor, floor: int) -> None:
        """`floor`: tokens of the first block of a clip, which keeps all."""
        check_floor(tokens, floor)
        self.tokens, self.metric, self.floor = tokens, metric, floor

    def allocator(self, blocks: int) -> Allocator:
        return BudgetAllocator(self.tokens, self.metric)

    def video_allocators(self, blocks: Sequence[int]) -> list[tuple[int, Allocator]]:
        return [(1, BudgetAllocator(share, self.metric)) for share in clip_shares(self.tokens, blocks, self.floor)]


def clip_shares(tokens: int, blocks: Sequence[int], floor: int) -> list[int]:
    """Tokens of a video -> of each of its clips: at least `floor`, the rest in proportion to its blocks."""
    rest, ends = tokens - floor * len(blocks), [0, *accumulate(blocks)]
    if rest < 0:
        raise BudgetError(
            f"{tokens} tokens are too few for a video of {len(blocks)} clips, which take at least "
            f"{floor * len(blocks)}: the first block of each is kept whole"
        )
    return [floor + rest * end // ends[-1] - rest * start // ends[-1] for start, end in pairwise(ends)]


def check_floor(positions: int, floor: int) -> None:
    """BudgetError where fewer positions are asked for than the first block has."""
    if positions < floor:
        raise BudgetError(
            f"a budget of {positions} positions is below the floor: the first block is kept whole, and it has {floor}"
        )


class Paths:
    """The shortest paths of all positions, with every number of kept latents, by dynamic programming.

    Time grows with the cube of the blocks and memory with their square; long videos are cut in periods.
    """

    def __init__(self, latents: Tensor, start: Tensor | None = None, *, means: bool = True) -> None:
        """(B, G, L, C) measured latents; `start` (B, L, C): references from before, a stop that is free. `means`:
        whether intervals are sent as their means."""
        self._whole = start is None
        stops = latents if start is None else torch.cat([start[:, None], latents], 1)
        stops, channels = stops.transpose(1, 2), stops.shape[3]
        self._count = stops.shape[2]
        # Latents that are equal have an error of zero, not of rounding.
        errors = torch.cdist(stops, stops, compute_mode="donot_use_mm_for_euclid_dist").square() / channels
        errors, at = errors.tril(-1), torch.arange(self._count + 1, device=errors.device)
        # (B, L, stop or end, earlier stop): the error of passing over all between.
        passing = errors.cumsum(2)
        if means:  # squared distances from a mean sum up to those between all pairs, over their number
            pairs = errors.flip(-1).cumsum(-1).flip(-1).cumsum(2) / (at[1:, None] - at[:-1]).clamp(min=1)
            passing = pairs if start is None else torch.cat([passing[..., :1], pairs[..., 1:]], -1)
        passing = F.pad(passing, (0, 0, 1, 0)).masked_fill(at[:, None] <= at[:-1], torch.inf)
        self._before: list[Tensor] = []
        """For one stop between, two, ...: the last of them on the cheapest path to every stop and to the end."""
        cost = passing[..., 0]
        ends = [cost[..., -1]]
        for _ in range(self._count - 1):
            cost, before = (cost[..., None, :-1] + passing).min(-1)
            self._before.append(before)
            ends.append(cost[..., -1])
        self.savings = _hull_slopes(torch.stack(ends, -1))
        """(B, L, count - 1): what the first stop after the start saves, what a second saves beside it, ...: less and
        less. Where two save more than twice what one does, each counts half of both."""

    @property
    def floor(self) -> int:
        """Positions that are kept at any price: the first block, unless something is known from before."""
        return self.savings.shape[1] if self._whole else 0

    def at_price(self, prices: Tensor) -> Tensor:
        """(B,) prices -> (B, G, L) kept latents: those that save more than they cost."""
        return self._follow((self.savings > prices[:, None, None]).sum(-1))

    def at_budget(self, positions: Tensor) -> Tensor:
        """(B,) numbers of latents -> (B, G, L), so many of each clip kept: no more, and no fewer while any saves."""
        savings, order = self.savings.flatten(1).sort(stable=True, dim=1, descending=True)
        bought = torch.arange(savings.shape[1], device=savings.device) < self._bought(positions)
        chosen = torch.zeros_like(bought).scatter(1, order, bought & (savings > 0))
        return self._follow(chosen.view_as(self.savings).sum(-1))

    def prices(self, positions: Tensor) -> Tensor:
        """(B,) numbers of latents -> (B,) the prices `at_price` which so many are kept, or fewer where several save the
        same."""
        savings = F.pad(self.savings.flatten(1).sort(1, descending=True).values, (0, 1))
        return savings.gather(1, self._bought(positions).clamp(max=savings.shape[1] - 1))[:, 0]

    def _bought(self, positions: Tensor) -> Tensor:
        """(B, 1): without the first block, where it is kept whole."""
        return (positions - self.floor)[:, None]

    def _follow(self, numbers: Tensor) -> Tensor:
        """(B, L) how many stops there are after the first -> (B, G, L) where they are: from the end back."""
        numbers = numbers[..., None]
        at, visited = torch.full_like(numbers, self._count), [torch.zeros_like(numbers)]
        for number in range(self._count - 1, 0, -1):
            at = torch.where(numbers >= number, self._before[number - 1].gather(-1, at), at)
            visited.append(at)
        keep = numbers.new_zeros(*numbers.shape[:2], self._count + 1, dtype=torch.bool)
        keep = keep.scatter(-1, torch.cat(visited, -1), True)[..., :-1].transpose(1, 2)
        return keep if self._whole else keep[:, 1:]


def _hull_slopes(errors: Tensor) -> Tensor:
    """(..., N) errors with 0, 1, ... stops -> (..., N - 1) how steeply their lower convex hull falls at each step."""
    count = torch.arange(errors.shape[-1], device=errors.device)
    steps = count - count[:, None]  # from a row's number of stops to a column's
    slopes = (errors[..., :, None] - errors[..., None, :]) / steps.clamp(min=1)
    steepest = slopes.masked_fill(steps <= 0, -torch.inf).flip(-1).cummax(-1).values.flip(-1)  # to a column or beyond
    return steepest.masked_fill(steps <= 0, torch.inf).amin(-2)[..., 1:]
