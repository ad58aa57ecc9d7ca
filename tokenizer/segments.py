"""A video in the segments of a token file: clips that are coded by themselves, or parts of a stream without seams."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import singledispatch

import torch
from torch import Tensor

from genvid.allocation import Allocator, BudgetError, DistortionPredictor, UniformAllocator
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import ScorerPredictor
from genvid.tokenizer.adaptok.stream import StreamBudget, StreamDecoder, StreamEncoder
from genvid.tokenizer.budgets import clip_budget
from genvid.tokens import BlockTokens, TokenizerSpec, VideoTokenizer

STREAM_BLOCKS = 16
"""Blocks of a segment of a stream: a reader begins at one of them."""


@dataclass(frozen=True)
class TokenRate:
    """A hard limit of tokens a second."""

    tokens: Fraction
    fps: Fraction

    def tokens_of(self, frames: int) -> int:
        """Most tokens of so many frames."""
        return math.floor(self.tokens * frames / self.fps)


class SegmentCoder(ABC):
    """Codes the consecutive segments of one video."""

    independent: bool
    """Whether a segment can be coded without those before it."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec
        """Of segments: `max_blocks` are those of the longest."""

    @abstractmethod
    def encoder(self, rate: TokenRate | None, lengths: Iterable[int]) -> Callable[[Tensor], BlockTokens]:
        """The next segment (1, 3, T, H, W) in [-1, 1], of one of these `lengths` T -> its tokens without features.

        BudgetError for a rate below the fewest tokens that segments take.
        """

    @abstractmethod
    def decoder(self) -> Callable[[BlockTokens], Tensor]:
        """The next tokens -> (1, 3, T, H, W), about [-1, 1]."""


class ClipCoder(SegmentCoder):
    """Every segment is a clip by itself."""

    independent = True

    def __init__(self, tokenizer: VideoTokenizer, predictor: DistortionPredictor | None) -> None:
        super().__init__(tokenizer.spec)
        self.tokenizer, self.predictor = tokenizer, predictor

    def encoder(self, rate: TokenRate | None, lengths: Iterable[int]) -> Callable[[Tensor], BlockTokens]:
        allocators = {} if rate is None else {frames: self._allocator(rate, frames) for frames in set(lengths)}

        @torch.no_grad()
        def encode(video: Tensor) -> BlockTokens:
            tokens = self.tokenizer.encode(video)
            return replace(allocators[video.shape[2]](tokens) if allocators else tokens, features=None)

        return encode

    def decoder(self) -> Callable[[BlockTokens], Tensor]:
        return torch.no_grad()(self.tokenizer.decode)

    def _allocator(self, rate: TokenRate, frames: int) -> Allocator:
        """Of clips of so many frames. Budgets of a tokenizer of limited length are of its longest clip."""
        longest = frames if self.spec.max_blocks is None else self.spec.longest_clip(self.spec.max_blocks)
        budget = clip_budget(self.tokenizer, self.predictor, rate.tokens_of(longest))
        return budget.allocator(self.spec.num_blocks(frames))


class StreamCoder(SegmentCoder):
    """Segments continue each other: a block reads those before it, in constant memory."""

    independent = False

    def __init__(self, tokenizer: AdapTok, predictor: DistortionPredictor | None, most_blocks: int | None) -> None:
        super().__init__(replace(tokenizer.spec, max_blocks=min(STREAM_BLOCKS, most_blocks or STREAM_BLOCKS)))
        self.tokenizer, self.predictor = tokenizer, predictor

    def encoder(self, rate: TokenRate | None, lengths: Iterable[int]) -> Callable[[Tensor], BlockTokens]:
        stream = StreamEncoder(self.tokenizer, None if rate is None else self._allocator(rate))
        return lambda video: replace(stream(video), features=None)

    def decoder(self) -> Callable[[BlockTokens], Tensor]:
        return StreamDecoder(self.tokenizer)

    def _allocator(self, rate: TokenRate) -> Allocator:
        """The rate in any run of blocks that lasts about a second, or without a scorer in each block."""
        per_block = self.spec.frames_per_block
        if isinstance(self.predictor, ScorerPredictor):
            blocks = max(1, round(rate.fps / per_block))
            return StreamBudget(self.predictor, rate.tokens_of(blocks * per_block), blocks)
        tokens = rate.tokens_of(per_block)
        if not tokens:
            raise BudgetError(f"{float(rate.tokens):g} tokens a second are less than one of each block")
        return UniformAllocator(tokens)


@singledispatch
def segment_coder(
    tokenizer: VideoTokenizer, predictor: DistortionPredictor | None, most_blocks: int | None
) -> SegmentCoder:
    """The coder of a tokenizer. `most_blocks`: of a segment of a stream, at most `STREAM_BLOCKS`; None: so many."""
    return ClipCoder(tokenizer, predictor)


@segment_coder.register
def _(tokenizer: AdapTok, predictor: DistortionPredictor | None, most_blocks: int | None) -> SegmentCoder:
    if tokenizer.window is None:
        return ClipCoder(tokenizer, predictor)
    return StreamCoder(tokenizer, predictor, most_blocks)
