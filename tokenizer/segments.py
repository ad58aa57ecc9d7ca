"""A video in the segments of a token file: clips that are coded by themselves, or parts of a stream without seams."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from genvid.allocation import Allocator, BudgetError, DistortionPredictor, UniformAllocator
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.budgets import clip_budget
from genvid.tokenizer.streams import stream_allocator, streams, video_encoder
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
    def encoder(
        self, rate: TokenRate | None, lengths: Iterable[int], refine: int = 0
    ) -> Callable[[Tensor], BlockTokens]:
        """The next segment (1, 3, T, H, W) in [-1, 1], of one of these `lengths` T -> its tokens without features.

        `refine`: steps by which codes are refined (`genvid.tokenizer.streams.video_encoder`). BudgetError for a rate
        below the fewest tokens that segments take.
        """


class ClipCoder(SegmentCoder):
    """Every segment is a clip by itself."""

    independent = True

    def __init__(self, tokenizer: VideoTokenizer, predictor: DistortionPredictor | None) -> None:
        super().__init__(tokenizer.spec)
        self.tokenizer, self.predictor = tokenizer, predictor

    def encoder(
        self, rate: TokenRate | None, lengths: Iterable[int], refine: int = 0
    ) -> Callable[[Tensor], BlockTokens]:
        encoders = {
            frames: video_encoder(self.tokenizer, None if rate is None else self._allocator(rate, frames), refine)
            for frames in set(lengths)
        }

        @torch.no_grad()
        def encode(video: Tensor) -> BlockTokens:
            return replace(encoders[video.shape[2]](video), features=None)

        return encode

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

    def encoder(
        self, rate: TokenRate | None, lengths: Iterable[int], refine: int = 0
    ) -> Callable[[Tensor], BlockTokens]:
        stream = video_encoder(self.tokenizer, None if rate is None else self._allocator(rate), refine)
        return lambda video: replace(stream(video), features=None)

    def _allocator(self, rate: TokenRate) -> Allocator:
        """The rate in any second, without a scorer by equally many tokens for every block."""
        if self.predictor is not None:
            return stream_allocator(self.tokenizer, self.predictor, math.floor(rate.tokens), math.ceil(rate.fps))
        per_block = self.spec.frames_per_block
        # A shorter first block has the tokens of a whole one: the first second has those of so many frames more.
        more = per_block - self.spec.frames_of(0)
        tokens = math.floor(rate.tokens * per_block / (rate.fps + more))
        if not tokens:
            raise BudgetError(f"{float(rate.tokens):g} tokens a second are less than one of each block")
        return UniformAllocator(tokens)


def segment_coder(
    tokenizer: VideoTokenizer, predictor: DistortionPredictor | None, most_blocks: int | None
) -> SegmentCoder:
    """The coder of a tokenizer. `most_blocks`: of a segment of a stream, at most `STREAM_BLOCKS`; None: so many."""
    if streams(tokenizer):
        return StreamCoder(tokenizer, predictor, most_blocks)
    return ClipCoder(tokenizer, predictor)
