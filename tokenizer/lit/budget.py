"""Budgets of latents, spent where copying forward would lose the most.

A kept latent serves until the next one is kept at its position. What a position keeps is then a shortest path from
its first latent to the end of the clip: to stop at a latent has a price, and to pass over one costs its squared
distance from the last stop. Under one price no choice of as many latents has a smaller total error (Everett 1963;
Shoham and Gersho 1988). One price for all clips spends on each what it needs (`PricedRedundancy`); or the price of each
clip is searched until its own budget is met (`BudgetedRedundancy`).

The paper (arXiv 2606.06158) has a threshold and no budget. A threshold does not look ahead, so it cannot know how long
a latent will serve; an encoder that has the whole clip can. The receiver is causal in both cases.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from genvid.allocation import BudgetError
from genvid.tokenizer.lit.redundancy import measured
from genvid.tokenizer.lit.reference import Reference, last_kept
from genvid.tokens import BlockTokens

_ROUNDS, _LEVELS = 2, 64
"""A price is searched in rounds of so many levels side by side: on a GPU a round costs as much as one level."""


class PricedRedundancy:
    """Keeps what costs less than to pass over it; the first block of a clip whole. The rate follows from the content.

    Of all clips that are cut under one price, no choice of as many latents in all has a smaller total error.
    """

    def __init__(self, price: float, metric: Tensor) -> None:
        """`price` is a squared distance, in squared standard deviations; `metric` (C, C) that of the codec."""
        if not price >= 0:
            raise ValueError(f"the price of a latent is at least 0, got {price}")
        self.price, self.metric = price, metric

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        latents = measured(tokens, self.metric)
        prices = latents.new_full((len(latents),), self.price)
        return replace(tokens, keep=tokens.keep & Paths(latents).follow(prices)[0])


class BudgetedRedundancy:
    """Keeps at most `positions` in every `period` blocks of every clip, the first block of the clip whole.

    The budget is met to the token, unless fewer positions differ from their reference at all. `period` None is the
    whole clip; with blocks of a second it bounds the rate of a stream.
    """

    def __init__(self, positions: int, metric: Tensor, *, period: int | None = None) -> None:
        if positions < 1 or (period is not None and period < 1):
            raise ValueError(f"a budget is at least 1 position in at least 1 block, got {positions} in {period}")
        self.positions, self.period, self.metric = positions, period, metric

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        latents = measured(tokens, self.metric)
        clips, blocks, capacity = tokens.keep.shape
        if self.positions < capacity:
            raise BudgetError(
                f"a budget of {self.positions} positions is below the floor: "
                f"the first block is kept whole, and it has {capacity}"
            )
        budget = torch.full((clips,), self.positions, device=latents.device)
        keeps, known = list[Tensor](), None
        for part in torch.split(latents, self.period or blocks, 1):
            keeps.append(spend(part, budget, None if known is None else known.latents))
            held, age = last_kept(part, keeps[-1], known)
            known = Reference(held[:, -1], age[:, -1])
        return replace(tokens, keep=tokens.keep & torch.cat(keeps, 1))


def spend(latents: Tensor, positions: Tensor, start: Tensor | None = None) -> Tensor:
    """(B, G, L, C) measured latents and (B,) positions -> (B, G, L), so many of each clip kept: no more, and no fewer
    while any differs from its reference. `start` (B, L, C): references from before; without, the first block is kept.
    """
    paths = Paths(latents, start)
    keep, gain = paths.follow(paths.find_prices(positions))
    # Prices are not searched to the last bit: what is left goes to those that come next.
    rest = positions - keep.sum((1, 2))
    score, order = gain.flatten(1).sort(dim=1, descending=True, stable=True)
    extra = (torch.arange(score.shape[1], device=score.device) < rest[:, None]) & score.isfinite()
    return keep | torch.zeros_like(extra).scatter(1, order, extra).view_as(keep)


class Paths:
    """The shortest paths of all positions, under many prices side by side.

    What is compared with what is a matter of numbers of blocks: errors of all pairs of blocks are computed once. Their
    count grows with the square of the blocks; for long videos, `BudgetedRedundancy` has a `period`.
    """

    def __init__(self, latents: Tensor, start: Tensor | None = None) -> None:
        """(B, G, L, C) measured latents; `start` (B, L, C): references from before, a stop that is free."""
        self._whole = start is None
        self.stops = latents if start is None else torch.cat([start[:, None], latents], 1)
        clips, self.count, capacity, _ = self.stops.shape
        self.passing = latents.new_zeros(clips, self.count + 1, self.count, capacity)
        """[:, stop or end, earlier stop]: the error of passing over all between."""
        for stop in range(1, self.count):
            error = (self.stops[:, stop, None] - self.stops[:, :stop]).square().mean(-1)
            self.passing[:, stop + 1, :stop] = self.passing[:, stop, :stop] + error

    def cheapest(self, prices: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, K) prices -> of every stop but the first and of the end, the stop before it (B, K, L); and (B, K), how
        many latents each clip keeps."""
        shape = (*prices.shape, self.count, self.passing.shape[-1])
        cost, kept, before = prices.new_zeros(shape), prices.new_zeros(shape), list[Tensor]()
        kept[:, :, 0] = self._whole
        for stop in range(1, self.count + 1):
            least, previous = (cost[:, :, :stop] + self.passing[:, None, stop, :stop]).min(2)
            so_far = kept[:, :, :stop].gather(2, previous[:, :, None])[:, :, 0]
            before.append(previous)
            if stop < self.count:
                cost[:, :, stop], kept[:, :, stop] = least + prices[..., None], so_far + 1
        return before, so_far.sum(-1)

    def follow(self, prices: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) prices -> (B, G, L) kept latents; and how much error keeping one more would save, -inf for those that
        are kept and those that equal their reference."""
        *before, last = (stop[:, 0] for stop in self.cheapest(prices[:, None])[0])
        following, keeps, gains = torch.full_like(last, self.count), list[Tensor](), list[Tensor]()
        for stop in range(self.count - 1, -1 if self._whole else 0, -1):
            keep = last == stop
            if stop:
                last = torch.where(keep, before[stop - 1], last)
            saved = self._between(following, last) - self.passing[:, stop].gather(1, last[:, None])[:, 0]
            saved = saved - self.passing[:, :, stop].gather(1, following[:, None])[:, 0]
            latent = self.stops[:, stop]
            same = (latent == self.stops.gather(1, last[:, None, :, None].expand_as(latent[:, None]))[:, 0]).all(-1)
            following = torch.where(keep, stop, following)
            keeps.append(keep)
            gains.append(torch.where(keep | same, -torch.inf, saved))
        return torch.stack(keeps[::-1], 1), torch.stack(gains[::-1], 1)

    def _between(self, stop: Tensor, earlier: Tensor) -> Tensor:
        """(B, L) stops -> (B, L) the error of passing over all between."""
        return self.passing.flatten(1, 2).gather(1, (stop * self.count + earlier)[:, None])[:, 0]

    def find_prices(self, positions: Tensor) -> Tensor:
        """(B,) prices under which each clip keeps at most, and nearly, `positions` (B,) latents."""
        # Levels are even in the root of the price, a distance: prices that matter are far below the highest.
        high = 1.001 * self.passing[:, -1, 0].amax(1).sqrt() + 1e-6
        low = torch.zeros_like(high)
        share = torch.arange(1, _LEVELS + 1, device=high.device) / _LEVELS
        for _ in range(_ROUNDS):
            levels = torch.cat([(low[:, None] + (high - low)[:, None] * share)[:, :-1], high[:, None]], 1)
            fits = self.cheapest(levels.square())[1] <= positions[:, None]
            first = fits.long().argmax(1, keepdim=True)  # under the highest nothing is kept, so one does fit
            below = torch.cat([low[:, None], levels[:, :-1]], 1)
            low, high = below.gather(1, first)[:, 0], levels.gather(1, first)[:, 0]
        return high.square()
