"""Rules that decide how many tokens each block keeps. All are deterministic, and decide on the CPU.

Budgets are mean tokens per video. `uniform`, `table` and `threshold` treat each clip alone. `group` and `joint` share
one budget among the `group_size` consecutive clips of a group: pass whole groups, in a fixed order, and the result
depends on neither batch size nor world size. A short last group gets its share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from genvid.allocation.curves import check_curves, gains
from genvid.allocation.per_clip import solve_clips
from genvid.allocation.predictor import DistortionPredictor, predict_all_curves, predict_curves, unset_lengths
from genvid.allocation.program import BudgetError, grid_unit
from genvid.allocation.solver import solve_budget
from genvid.tokens import BlockTokens


class Allocator(Protocol):
    """A rule that drops tokens from the end of blocks."""

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        """The same tokens, fewer kept."""
        ...


class UniformAllocator:
    """Every block of every clip keeps `length` tokens."""

    def __init__(self, length: int) -> None:
        if length < 0:
            raise ValueError(f"a block cannot keep {length} tokens")
        self.length = length

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        return tokens.tail_drop(torch.full_like(tokens.lengths, min(self.length, tokens.keep.shape[2])))


class TableAllocator:
    """Block g of every clip keeps the same number of tokens: the table without any adaptivity to content.

    `lengths` are (G,) mean tokens per block. They become candidate sizes whose sum is as near below the sum of the
    table as sizes allow, and among those the nearest to the table in the sense of least squares.
    """

    def __init__(self, lengths: Sequence[float], sizes: Tensor) -> None:
        grid, table = sizes.double(), torch.tensor(list(lengths), dtype=torch.float64)
        misfit = (grid - table[:, None]) ** 2
        spend_first = misfit.amax(1).sum() + 1  # more than any misfit: a spent token always wins
        self.lengths = solve_budget(misfit - spend_first * grid, sizes, whole_tokens(sum(lengths)))

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        check_blocks(tokens, len(self.lengths), "the table of lengths")
        return tokens.tail_drop(self.lengths.expand(len(tokens.keep), -1))


class GroupAllocator:
    """AdapTok's rule (arXiv:2505.17011, as released): block after block, each with a fixed budget over the group.

    `block_budgets` are (G,) mean tokens per block. `exact`: as published, all of the budget is spent,
    rounded down to whole steps between sizes, and curves are used as predicted, rises included. Otherwise the budget is
    an upper bound, and curves are made non-increasing.
    """

    def __init__(
        self, predictor: DistortionPredictor, block_budgets: Sequence[float], group_size: int, *, exact: bool = False
    ) -> None:
        self.predictor, self.block_budgets, self.exact = predictor, list(block_budgets), exact
        self.group_size = check_group_size(group_size)

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        check_blocks(tokens, len(self.block_budgets), "the table of block budgets")
        lengths = unset_lengths(tokens)
        for block, mean in enumerate(self.block_budgets):
            curves = predict_curves(self.predictor, tokens, lengths, block, monotone=not self.exact)
            groups = torch.split(curves, self.group_size)
            lengths[:, block] = torch.cat([self._solve(group, mean) for group in groups])
        return tokens.tail_drop(lengths)

    def _solve(self, curves: Tensor, mean: float) -> Tensor:
        sizes, budget = self.predictor.sizes, whole_tokens(mean * len(curves))
        if self.exact:
            budget -= (budget - int(sizes[0]) * len(curves)) % grid_unit(sizes.tolist())
        return solve_budget(curves, sizes, budget, exact=self.exact)


class JointAllocator:
    """One budget over all blocks of all clips of a group: tokens move between blocks as well as between clips.

    The curves of a block depend on the lengths of earlier blocks, so lengths are refined in `rounds`, from a uniform
    cut on. A round goes block by block: it predicts the curves of the block under the lengths set so far, solves the
    program over this and all later blocks (with their curves of the round before) for the remaining budget, and sets
    the length of the block. Every round keeps to the budget; each group gets the lengths with the least predicted
    distortion. On real clips one round is as good as three (docs/allocation.md). `block_weights` (G,) multiply the
    gains of each block (see `fit_block_weights`).
    """

    def __init__(
        self,
        predictor: DistortionPredictor,
        tokens_per_video: float,
        group_size: int,
        *,
        block_weights: Sequence[float] | None = None,
        rounds: int = 1,
    ) -> None:
        if rounds < 1:
            raise ValueError(f"the joint rule needs at least 1 round, got {rounds}")
        self.predictor, self.tokens_per_video, self.rounds = predictor, tokens_per_video, rounds
        self.group_size, self.block_weights = check_group_size(group_size), block_weights

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        clips, blocks, _ = tokens.keep.shape
        sizes = self.predictor.sizes
        weights = weights_tensor(self.block_weights, tokens)
        lengths = largest_size(sizes, self.tokens_per_video / blocks).repeat(clips, blocks)
        curves = predict_all_curves(self.predictor, tokens, lengths)
        best, least = lengths, self._predicted(curves, sizes, lengths)
        for _ in range(self.rounds):
            before, lengths = lengths, lengths.clone()
            for block in range(blocks):
                if block:  # the curve of the first block depends on no cut
                    curves[:, block] = predict_curves(self.predictor, tokens, lengths, block)
                lengths[:, block:] = self._solve(curves * weights[:, None], sizes, lengths, block)
            predicted = self._predicted(curves, sizes, lengths)
            better = predicted < least
            best, least = torch.where(better[:, None], lengths, best), torch.where(better, predicted, least)
            if torch.equal(lengths, before):
                break
        return tokens.tail_drop(best)

    def _solve(self, curves: Tensor, sizes: Tensor, lengths: Tensor, block: int) -> Tensor:
        """Lengths of `block` and later ones, under the budget of each group less the tokens of earlier blocks."""
        if self.group_size == 1:
            most = lengths.shape[1] * int(sizes[-1])  # more could not be spent
            left = whole_tokens(min(self.tokens_per_video, most)) - lengths[:, :block].sum(1)
            return solve_clips(curves[:, block:], sizes, left)
        solved = []
        for group, spent in zip(
            torch.split(curves[:, block:], self.group_size),
            torch.split(lengths[:, :block], self.group_size),
            strict=True,
        ):
            budget = whole_tokens(self.tokens_per_video * len(group)) - int(spent.sum())
            solved.append(solve_budget(group.flatten(0, 1), sizes, budget).view(group.shape[:2]))
        return torch.cat(solved)

    def _predicted(self, curves: Tensor, sizes: Tensor, lengths: Tensor) -> Tensor:
        """(B,) distortion of the whole group of each clip."""
        clips = curves.gather(2, torch.searchsorted(sizes, lengths)[..., None])[..., 0].sum(1)
        return torch.cat([group.sum().expand(len(group)) for group in torch.split(clips, self.group_size)])


class ThresholdAllocator:
    """A slice of tokens is kept while its predicted gain per token exceeds `multiplier`; block after block.

    Gains are those of the lower convex hull of the block's curve. Works for one clip and for a stream, needs no
    look-ahead, and gives a clip the same lengths in any batch. On curves that do not depend on earlier cuts, the
    multiplier of the joint program makes it that program's optimum. The budget holds on average, not per clip.
    """

    def __init__(
        self, predictor: DistortionPredictor, multiplier: float, *, block_weights: Sequence[float] | None = None
    ) -> None:
        if not multiplier >= 0:
            raise ValueError(f"a multiplier is distortion per token, at least 0, got {multiplier}")
        self.predictor, self.multiplier, self.block_weights = predictor, multiplier, block_weights

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        weights = weights_tensor(self.block_weights, tokens)
        lengths = unset_lengths(tokens)
        for block in range(tokens.keep.shape[1]):
            curves = predict_curves(self.predictor, tokens, lengths, block) * weights[block]
            lengths[:, block] = self.step(curves)
        return tokens.tail_drop(lengths)

    def step(self, curves: Tensor) -> Tensor:
        """(B, K) monotone (weighted) curves of one block, on the CPU -> (B,) sizes. The whole rule, for streaming
        callers."""
        sizes = self.predictor.sizes
        return sizes[(gains(check_curves(curves), sizes) > self.multiplier).sum(-1)]


def whole_tokens(tokens: float) -> int:
    """Tokens of a fractional budget: rounded down, but for rounding errors of the product that made it."""
    return math.floor(tokens + 1e-6)


def largest_size(sizes: Tensor, tokens: float) -> Tensor:
    """The largest candidate size within `tokens`; BudgetError below the smallest."""
    fitting = sizes[sizes <= tokens + 1e-6]
    if not len(fitting):
        raise BudgetError(f"{tokens:g} tokens per block are fewer than the smallest candidate size, {int(sizes[0])}")
    return fitting[-1]


def check_blocks(tokens: BlockTokens, blocks: int, what: str) -> None:
    if tokens.keep.shape[1] != blocks:
        raise ValueError(f"{what} is for {blocks} blocks but the clips have {tokens.keep.shape[1]}")


def check_group_size(group_size: int) -> int:
    if group_size < 1:
        raise ValueError(f"a group has at least one clip, got group_size {group_size}")
    return group_size


def weights_tensor(block_weights: Sequence[float] | None, tokens: BlockTokens) -> Tensor:
    """(G,) float64 weights; ones by default. A shorter clip has the weights of the first blocks."""
    blocks = tokens.keep.shape[1]
    if block_weights is None:
        return torch.ones(blocks, dtype=torch.float64)
    if blocks > len(block_weights):
        raise ValueError(f"there are weights for {len(block_weights)} blocks, but the clips have {blocks}")
    return torch.tensor(list(block_weights[:blocks]), dtype=torch.float64)
