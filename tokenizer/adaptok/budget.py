"""Token budgets of AdapTok: spent where the scorer predicts the greatest gain, or evenly."""

from __future__ import annotations

from pathlib import Path

from genvid.allocation import (
    Allocator,
    Budget,
    BudgetError,
    DistortionPredictor,
    GroupAllocator,
    JointAllocator,
    UniformAllocator,
)
from genvid.allocation.budget import GROUP_SIZE
from genvid.tokenizer.adaptok.loading import load_scorer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.published import published_budgets
from genvid.tokenizer.adaptok.scorer import ScorerPredictor
from genvid.tokens import TokenizerSpec


class ScorerBudget(Budget):
    """Mean tokens of a clip, which move between its blocks and between the clips of a group."""

    def __init__(
        self, predictor: DistortionPredictor, tokens: int, full_length: int, group_size: int = GROUP_SIZE
    ) -> None:
        """`tokens` are of a clip of `full_length` blocks; shorter ones have their share."""
        _check_tokens(tokens, full_length, int(predictor.sizes[0]))
        self.predictor, self.tokens, self.full_length, self.group_size = predictor, tokens, full_length, group_size

    def allocator(self, blocks: int) -> Allocator:
        return JointAllocator(self.predictor, self.tokens * blocks / self.full_length, self.group_size)


class UniformBudget(Budget):
    """The same number of tokens for every block."""

    def __init__(self, tokens: int, full_length: int) -> None:
        """`tokens` are of a clip of `full_length` blocks; shorter ones have their share."""
        _check_tokens(tokens, full_length, 1)
        self.length = tokens // full_length

    def allocator(self, blocks: int) -> Allocator:
        return UniformAllocator(self.length)


class PublishedBudget(Budget):
    """The budgets of each block in the published evaluation, spent by its integer program."""

    def __init__(self, predictor: DistortionPredictor, tokens: int, spec: TokenizerSpec) -> None:
        self.predictor = predictor
        self.block_budgets = published_budgets(spec.block_capacity, tokens)
        blocks = len(self.block_budgets)
        if blocks != spec.max_blocks:
            raise ValueError(f"the published budgets are for {blocks} blocks, this tokenizer has {spec.max_blocks}")

    def allocator(self, blocks: int) -> Allocator:
        return GroupAllocator(self.predictor, self.block_budgets[:blocks], GROUP_SIZE, exact=True)


def load_predictor(tokenizer: AdapTok, scorer: str | Path) -> ScorerPredictor:
    """The predictor of a scorer's model folder or Hub id, on the device of the tokenizer."""
    device = next(tokenizer.parameters()).device
    return ScorerPredictor(tokenizer, load_scorer(scorer, tokenizer).to(device))


def _check_tokens(tokens: int, blocks: int, least: int) -> None:
    """BudgetError for fewer than `least` tokens a block."""
    if tokens < blocks * least:
        raise BudgetError(
            f"{tokens} tokens are too few for a clip of {blocks} blocks, which take at least {blocks * least}"
        )
