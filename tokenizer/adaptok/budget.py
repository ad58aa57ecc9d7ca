"""Token budgets of AdapTok: spent where the scorer predicts the greatest gain."""

from __future__ import annotations

from genvid.allocation import Allocator, Budget, BudgetError, GroupAllocator, JointAllocator
from genvid.allocation.budget import GROUP_SIZE
from genvid.tokenizer.adaptok.loading import load_scorer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.published import published_budgets
from genvid.tokenizer.adaptok.scorer import ScorerPredictor


class ScorerBudget(Budget):
    """Mean tokens of a clip, which move between its blocks and between the clips of a group."""

    def __init__(self, tokenizer: AdapTok, scorer: str, tokens: int) -> None:
        """`scorer`: model folder or Hub id. `tokens` are of a clip of full length; shorter ones have their share."""
        self.tokens, self.full_length = tokens, tokenizer.config.grid[0]
        self.predictor = _predictor(tokenizer, scorer)
        least = self.full_length * int(self.predictor.sizes[0])
        if tokens < least:
            raise BudgetError(
                f"{tokens} tokens are too few for a clip of {self.full_length} blocks, which take at least {least}"
            )

    def allocator(self, blocks: int) -> Allocator:
        return JointAllocator(self.predictor, self.tokens * blocks / self.full_length, GROUP_SIZE)


class PublishedBudget(Budget):
    """The budgets of each block in the published evaluation, spent by its integer program."""

    def __init__(self, tokenizer: AdapTok, scorer: str, tokens: int) -> None:
        self.predictor = _predictor(tokenizer, scorer)
        self.block_budgets = published_budgets(tokenizer.spec.block_capacity, tokens)
        blocks, full_length = len(self.block_budgets), tokenizer.config.grid[0]
        if blocks != full_length:
            raise ValueError(f"the published budgets are for {blocks} blocks, this tokenizer has {full_length}")

    def allocator(self, blocks: int) -> Allocator:
        return GroupAllocator(self.predictor, self.block_budgets[:blocks], GROUP_SIZE, exact=True)


def _predictor(tokenizer: AdapTok, scorer: str) -> ScorerPredictor:
    """The scorer, on the device of the tokenizer."""
    device = next(tokenizer.parameters()).device
    return ScorerPredictor(tokenizer, load_scorer(scorer, tokenizer).to(device))
