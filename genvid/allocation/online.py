"""Hard budgets online: block after block, no look-ahead, never a token too many.

A controller prices tokens anew before every block. The price is the multiplier at which this block (its predicted
curve) and a forecast of the blocks to come would together use up what is left; the block takes the size of least
distortion + price x (tokens + tokens that this size would strand). A `Ledger` holds the rules of the budget: the
sizes allowed now, and the tokens that each would strand. The guarantee does not depend on the forecast.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genvid.allocation.allocators import weights_tensor, whole_tokens
from genvid.allocation.curves import gains, running_minimum
from genvid.allocation.predictor import DistortionPredictor, predict_curves, unset_lengths
from genvid.allocation.program import BudgetError, grid_unit
from genvid.tokens import BlockTokens

_MEMORY = 16
"""Blocks of its own past that a stream is forecast from."""
_ROUNDING = 1e-5
"""Of predictions, relative to the largest: costs that differ by less are equal, and the smallest size is taken."""
_TRUST = 0.25
"""Weight of the calibration in the estimate of a clip's activity, in typical blocks."""


class Ledger(Protocol):
    """Remaining budgets of B streams, all at the same block."""

    def plan(self) -> tuple[int, Tensor]:
        """(blocks to come after this one that the plan covers, (B,) tokens for them and this block together)."""
        ...

    def stranded(self) -> Tensor:
        """(B, K) float64 tokens that could never be used if this block took each size; inf where it may not."""
        ...

    def spend(self, sizes: Tensor) -> None:
        """Book the (B,) sizes of this block and go to the next."""
        ...


class VideoLedger:
    """At most `tokens` for a video of `blocks` blocks."""

    def __init__(self, tokens: float, blocks: int, sizes: Tensor, streams: int = 1) -> None:
        grid = [int(size) for size in sizes.tolist()]
        tokens = whole_tokens(min(tokens, blocks * grid[-1]))  # more could not be spent
        if tokens < blocks * grid[0]:
            raise BudgetError(
                f"{tokens} tokens cannot pay for {blocks} blocks of at least {grid[0]} tokens; "
                f"allow {blocks * grid[0]} or more"
            )
        self._sizes, self._left, self._blocks_left = sizes, torch.full((streams,), tokens), blocks
        self._unit, self._first = grid_unit(grid), grid[0]
        self._sums = _reachable_sums([(size - grid[0]) // self._unit for size in grid], tokens // self._unit, blocks)

    def plan(self) -> tuple[int, Tensor]:
        if not self._blocks_left:
            raise ValueError("every block of this video has its tokens already; open a new ledger for the next video")
        return self._blocks_left - 1, self._left

    def stranded(self) -> Tensor:
        later = self._blocks_left - 1
        rest = self._left[:, None] - self._sizes - later * self._first
        sums = self._sums[later]
        largest = torch.tensor(np.maximum.accumulate(np.where(sums, np.arange(len(sums)), 0)))
        usable = largest[(rest // self._unit).clamp(0, len(sums) - 1)] * self._unit
        return (rest - usable).double().masked_fill(rest < 0, torch.inf)

    def spend(self, sizes: Tensor) -> None:
        self._left, self._blocks_left = self._left - sizes, self._blocks_left - 1


class StreamLedger:
    """A stream without end: a bucket that holds at most `burst` tokens and gains `tokens_per_block` before each block.

    It starts full. Any run of n blocks then takes at most burst + ceil(n x tokens_per_block) tokens.
    """

    def __init__(self, tokens_per_block: float, burst: int, sizes: Tensor, streams: int = 1) -> None:
        smallest = int(sizes[0])
        if not tokens_per_block >= smallest or not tokens_per_block:
            raise BudgetError(
                f"{tokens_per_block:g} tokens per block cannot pay for blocks of at least {smallest} tokens"
            )
        if burst < tokens_per_block:
            raise BudgetError(f"a bucket of {burst} tokens cannot hold the {tokens_per_block:g} tokens of one block")
        self._sizes, self._rate, self._burst, self._block = sizes, tokens_per_block, burst, 0
        self._level = torch.full((streams,), burst)

    def plan(self) -> tuple[int, Tensor]:
        """The bucket should be half full again after as many blocks as it could pay for."""
        ahead = math.ceil(self._burst / self._rate)
        return ahead, self._level + whole_tokens(ahead * self._rate) - self._burst // 2

    def stranded(self) -> Tensor:
        rest = self._level[:, None] - self._sizes
        overflow = (rest + self._refill() - self._burst).clamp(min=0)
        return overflow.double().masked_fill(rest < 0, torch.inf)

    def spend(self, sizes: Tensor) -> None:
        self._level = (self._level - sizes + self._refill()).clamp(max=self._burst)
        self._block += 1

    def _refill(self) -> int:
        """Whole tokens gained before the next block; their sum never runs ahead of the rate."""
        return whole_tokens((self._block + 1) * self._rate) - whole_tokens(self._block * self._rate)


class WindowLedger:
    """A stream without end: any `blocks` consecutive blocks take at most `tokens`, and so do the `first` ones."""

    def __init__(self, tokens: int, blocks: int, sizes: Tensor, first: int | None = None) -> None:
        """`first` is at least `blocks`; None: so many."""
        most = blocks if first is None else first
        if tokens < most * int(sizes[0]):
            raise BudgetError(
                f"{tokens} tokens cannot pay for {most} blocks of at least {int(sizes[0])} tokens; "
                f"allow {most * int(sizes[0])} or more"
            )
        tokens = min(tokens, most * int(sizes[-1]))  # more could not be spent
        self._tokens, self._sizes, self._before, self._left_of_first = tokens, sizes, blocks - 1, most
        self._spent = deque([sizes[:1]] * (most - 1), maxlen=most - 1)
        """(B,) sizes of the last blocks. As each leaves room for the next ones, the smallest size is always allowed."""

    def plan(self) -> tuple[int, Tensor]:
        """Spend the tokens that are free now or in half a window by then: later ones are for content still to come."""
        ahead = (len(self._spent) + 1) // 2
        return ahead, self._tokens - sum(list(self._spent)[ahead:], torch.zeros_like(self._sizes[:1]))

    def stranded(self) -> Tensor:
        """Nothing: tokens that a block leaves are free for the next ones."""
        left = self._tokens - sum(self._spent, torch.zeros_like(self._sizes[:1]))
        forbidden = self._sizes > left[:, None]
        return torch.zeros_like(forbidden, dtype=torch.float64).masked_fill(forbidden, torch.inf)

    def spend(self, sizes: Tensor) -> None:
        self._spent.append(sizes)
        self._left_of_first -= 1
        if not self._left_of_first:  # later windows are shorter
            self._spent = deque(self._spent, maxlen=self._before)


class OnlineController:
    """The size of each next block of B streams, from its predicted curve and the ledger.

    typical: (G, K - 1) gains per token and step of a typical clip (`Calibration.typical_gains`), which for the first G
    blocks are the forecast, scaled by the clip's own activity so far. Later, and without `typical`, the
    blocks to come are taken to be like the last 16 of this stream.
    block_weights: (G,) worth of a gain in each block; blocks beyond G like the last.
    """

    def __init__(
        self,
        ledger: Ledger,
        sizes: Tensor,
        *,
        typical: Tensor | None = None,
        block_weights: Sequence[float] | None = None,
    ) -> None:
        if typical is not None and typical.shape[1:] != (len(sizes) - 1,):
            wanted = f"(G, {len(sizes) - 1})"
            raise ValueError(f"typical gains of {len(sizes)} sizes are {wanted}, got {tuple(typical.shape)}")
        self._ledger, self._sizes, self._block = ledger, sizes, 0
        self._weights = [1.0] if block_weights is None else list(block_weights)
        self._typical = None if typical is None else typical.double()
        self._seen = torch.empty(0)
        """(B, up to 16, K - 1) gains of the last blocks."""

    def step(self, curves: Tensor) -> Tensor:
        """(B, K) predicted distortion of the next block, on the CPU -> (B,) sizes, booked in the ledger."""
        if not bool(curves.isfinite().all()):
            raise ValueError("a predicted distortion is NaN or infinite; fix the predictor")
        curves = running_minimum(curves) * self._weights[min(self._block, len(self._weights) - 1)]
        ahead, pool = self._ledger.plan()
        own = gains(curves, self._sizes)
        self._seen = torch.cat([self._seen, own[:, None]], 1)[:, -_MEMORY:] if self._block else own[:, None]
        future, counts = self._forecast(ahead)
        widths = self._sizes.diff()
        steps = torch.cat([own, future.flatten(1)], 1)
        weights = torch.cat([widths, (counts[:, None] * widths).flatten()])
        price = _price(steps, weights, pool - (ahead + 1) * self._sizes[0])
        stranded = self._ledger.stranded()
        cost = curves + price[:, None] * (self._sizes + torch.where(stranded < torch.inf, stranded, 0))
        cost = cost.masked_fill(stranded == torch.inf, torch.inf)
        # The price is often that of a step of this very block, whose ends then cost the same but for rounding.
        tied = cost <= cost.amin(1, keepdim=True) + _ROUNDING * curves.abs().amax(1, keepdim=True)
        chosen = self._sizes[tied.int().argmax(1)]
        self._ledger.spend(chosen)
        self._block += 1
        return chosen

    def _forecast(self, ahead: int) -> tuple[Tensor, Tensor]:
        """(B, U, K - 1) gains of the kinds of blocks to come, and (U,) how many of each are expected."""
        seen = self._seen.shape[1]
        if self._typical is None or self._block + 1 >= len(self._typical):
            return self._seen, torch.full((seen,), ahead / seen, dtype=torch.float64)
        widths = self._sizes.diff()
        totals = (self._typical * widths).sum(1)
        prior = _TRUST * totals.mean() + 1e-300
        expected = totals[self._block + 1 - seen : self._block + 1].sum()
        activity = ((self._seen * widths).sum((1, 2)) + prior) / (expected + prior)
        kinds = self._typical[self._block + 1 :][:ahead]
        counts = torch.ones(len(kinds), dtype=torch.float64)
        counts[-1:] += ahead - len(kinds)  # none where this is the last block
        return activity[:, None, None] * kinds, counts


class OnlineBudgetAllocator:
    """At most `tokens_per_video` tokens for every single clip; see `OnlineController` for `typical` and weights."""

    def __init__(
        self,
        predictor: DistortionPredictor,
        tokens_per_video: float,
        *,
        typical: Tensor | None = None,
        block_weights: Sequence[float] | None = None,
    ) -> None:
        self.predictor, self.tokens_per_video = predictor, tokens_per_video
        self.typical, self.block_weights = typical, block_weights

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        sizes = self.predictor.sizes
        weights_tensor(self.block_weights, tokens)
        ledger = VideoLedger(self.tokens_per_video, tokens.keep.shape[1], sizes, len(tokens.keep))
        controller = OnlineController(ledger, sizes, typical=self.typical, block_weights=self.block_weights)
        lengths = unset_lengths(tokens)
        for block in range(tokens.keep.shape[1]):
            lengths[:, block] = controller.step(predict_curves(self.predictor, tokens, lengths, block))
        return tokens.tail_drop(lengths)


def _price(steps: Tensor, widths: Tensor, pool: Tensor) -> Tensor:
    """(B,) gain of the step at which (B,) `pool` runs out, steps taken by falling gain; 0 when it suffices for all."""
    if not steps.shape[1]:  # a single candidate size: nothing to choose
        return torch.zeros(len(pool), dtype=torch.float64)
    ordered, order = steps.sort(dim=1, descending=True, stable=True)
    over = widths[order].cumsum(1) > pool[:, None] + 1e-6  # expected blocks are fractions, added in any order
    first = over.int().argmax(1, keepdim=True)
    price = ordered.gather(1, first)[:, 0].clamp(min=0)
    return torch.where(over.any(1), price, 0)


def _reachable_sums(offsets: list[int], most: int, blocks: int) -> list[NDArray[np.bool_]]:
    """sums[h][r]: whether r <= most is a sum of `h` of the offsets, for h < blocks."""
    sums = [np.arange(most + 1) == 0]
    while len(sums) < blocks:
        following = np.zeros(most + 1, bool)
        for offset in offsets:
            following[offset:] |= sums[-1][: max(most + 1 - offset, 0)]
        sums.append(following)
    return sums
