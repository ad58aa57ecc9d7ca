"""Token budgets of AdapTok: spent where the scorer predicts the greatest gain, or evenly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor
from genvid.tokenizer.adaptok.stream import StreamBudget
from genvid.tokens import TokenizerSpec


class _LengthBudget(Budget):
    """`tokens` are of a clip of `full_length` blocks, of which shorter ones have their share; None: of every clip.
    A block takes at least `least`."""

    def __init__(self, tokens: int, full_length: int | None, least: int) -> None:
        self.tokens, self.full_length, self.least = tokens, full_length, least
        self.share(full_length or 1)

    def share(self, blocks: int) -> float:
        """Tokens of a clip of so many blocks; BudgetError for fewer than it takes."""
        full = self.full_length or blocks
        if self.tokens < full * self.least:
            raise BudgetError(
                f"{self.tokens} tokens are too few for a clip of {full} blocks, which take at least {full * self.least}"
            )
        return self.tokens * blocks / full


class ScorerBudget(_LengthBudget):
    """Mean tokens of a clip, which move between its blocks and between the clips of a group."""

    def __init__(
        self, predictor: DistortionPredictor, tokens: int, full_length: int | None, group_size: int = GROUP_SIZE
    ) -> None:
        super().__init__(tokens, full_length, int(predictor.sizes[0]))
        self.predictor, self.group_size = predictor, group_size

    def allocator(self, blocks: int) -> Allocator:
        return JointAllocator(self.predictor, self.share(blocks), self.group_size)


class StreamScorerBudget(ScorerBudget):
    """Of rotary geometry: clips as in `ScorerBudget`; a whole video as a stream, of which any run of blocks as long as
    such a clip keeps at most its tokens."""

    def __init__(self, predictor: ScorerPredictor, tokens: int, full_length: int) -> None:
        super().__init__(predictor, tokens, full_length)
        self._stream = partial(StreamBudget, predictor, tokens, full_length)

    def video_allocators(self, blocks: Sequence[int]) -> list[tuple[int, Allocator]]:
        allocator = self._stream()
        return [(1, allocator)] * len(blocks)


class UniformBudget(_LengthBudget):
    """The same number of tokens for every block."""

    def __init__(self, tokens: int, full_length: int | None) -> None:
        super().__init__(tokens, full_length, 1)

    def allocator(self, blocks: int) -> Allocator:
        return UniformAllocator(int(self.share(blocks)) // blocks)


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
