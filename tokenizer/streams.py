"""A long video in consecutive clips: each by itself, or as one stream where the tokenizer has rotary geometry."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeGuard

from torch import Tensor

from genvid.allocation import Allocator, DistortionPredictor
from genvid.replay import Graphs
from genvid.tokenizer.adaptok.budget import UniformBudget
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor
from genvid.tokenizer.adaptok.stream import StreamBudget, StreamDecoder, StreamEncoder
from genvid.tokenizer.refinement import check_refined, refine_clips
from genvid.tokens import BlockTokens, VideoTokenizer


def streams(tokenizer: VideoTokenizer) -> TypeGuard[AdapTok]:
    """Whether consecutive clips of a video are one stream, without seams between them."""
    return isinstance(tokenizer, AdapTok) and tokenizer.window is not None


def video_encoder(
    tokenizer: VideoTokenizer, allocator: Allocator | None = None, refine: int = 0, graphs: Graphs | None = None
) -> Callable[[Tensor], BlockTokens]:
    """Encodes the consecutive clips of one video and cuts each by `allocator`, of a stream each block; None: all tokens
    are kept. `refine`: steps by which these are refined then (genvid.tokenizer.refinement). `graphs`: those that other
    videos share with this one.

    ValueError for steps below 0, or with a tokenizer other than AdapTok and LIT.
    """
    check_refined(tokenizer, refine)
    if streams(tokenizer):
        return StreamEncoder(tokenizer, allocator, refine, graphs)

    shared = graphs or Graphs()
    encode_clip = partial(tokenizer.encode, graphs=shared) if isinstance(tokenizer, AdapTok) else tokenizer.encode

    def encode(clip: Tensor) -> BlockTokens:
        tokens = encode_clip(clip)
        return refine_clips(tokenizer, clip, tokens if allocator is None else allocator(tokens), refine)

    return encode


def video_decoder(tokenizer: VideoTokenizer, graphs: Graphs | None = None) -> Callable[[BlockTokens], Tensor]:
    """Decodes the consecutive clips of one video. `graphs`: those that other videos share with this one."""
    if streams(tokenizer):
        return StreamDecoder(tokenizer, graphs)
    return partial(tokenizer.decode, graphs=graphs or Graphs()) if isinstance(tokenizer, AdapTok) else tokenizer.decode


def stream_allocator(tokenizer: AdapTok, predictor: DistortionPredictor | None, tokens: int, frames: int) -> Allocator:
    """At most `tokens` for any `frames` consecutive frames of one video; without a scorer as many for every block.

    BudgetError for fewer tokens than their blocks take.
    """
    # No stretch of so many frames has parts of more tokens than the fewest blocks that outlast it.
    first, blocks = (spec.covering(frames) for spec in (tokenizer.spec, tokenizer.spec.continued))
    if isinstance(predictor, ScorerPredictor):
        own = predictor if predictor.tokenizer is tokenizer else ScorerPredictor(tokenizer, predictor.scorer)
        return StreamBudget(own, tokens, blocks, first)
    return UniformBudget(tokens, first).allocator(first)


def fitted(tokenizer: VideoTokenizer, resolution: tuple[int, int]) -> VideoTokenizer:
    """The tokenizer for frames (height, width) as they are, or where it does not take them itself, for resized ones."""
    if streams(tokenizer):
        with suppress(ValueError):
            return tokenizer.at(resolution)
    return tokenizer
