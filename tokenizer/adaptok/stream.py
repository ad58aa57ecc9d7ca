"""A tokenizer with rotary geometry on a video in pushes of any length: the result of one call, in constant memory."""

from __future__ import annotations

import torch
from torch import Tensor

from genvid.allocation import Allocator, OnlineController, WindowLedger
from genvid.allocation.curves import check_curves
from genvid.allocation.predictor import unset_lengths
from genvid.replay import Graphs
from genvid.tokenizer.adaptok.model import AdapTok, all_kept
from genvid.tokenizer.adaptok.past import PastBlocks
from genvid.tokenizer.adaptok.refinement import CodeRefiner
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor, ScorerStream
from genvid.tokens import BlockTokens, TokenizerSpec
from genvid.tokens.blocks import first_tokens


class StreamEncoder:
    """Frames of B videos -> tokens of each block as it closes."""

    def __init__(
        self, tokenizer: AdapTok, allocator: Allocator | None = None, refine: int = 0, graphs: Graphs | None = None
    ) -> None:
        """`allocator` cuts one block (B, 1, L) after the other; None: all tokens are kept. `refine`: steps by which the
        codes of each block are refined then. `graphs`: those that other streams share with this one.

        ValueError for a tokenizer with absolute geometry.
        """
        self.tokenizer, self.allocator = tokenizer, allocator
        self.frames = 0
        """Frames so far, without those that `finish` adds."""
        self._past = PastBlocks(_window(tokenizer), graphs=graphs or Graphs())
        self._refine_next = CodeRefiner(tokenizer, refine) if refine else None
        self._begun: Tensor | None = None
        """(B, 3, t, H, W): frames of a block that is not closed."""
        self._finished = False

    def __call__(self, video: Tensor) -> BlockTokens:
        """The next frames (B, 3, T, H, W) in [-1, 1], T >= 0 -> tokens of the G >= 0 blocks that they close.

        ValueError for frames of another size or number of videos; the stream is then as before.
        """
        self.tokenizer.spec.check_frames(video)
        if self._finished:
            raise ValueError(f"this stream is finished after {self.frames} frames: begin another one")
        if self._begun is not None:
            _check_videos(len(video), len(self._begun))
            video = torch.cat([self._begun, video], 2)
        begun = 0 if self._begun is None else self._begun.shape[2]
        self.frames += video.shape[2] - begun
        lengths = self._next.block_frames(self._next.complete(video.shape[2]))
        *blocks, rest = torch.split(video, [*lengths, video.shape[2] - sum(lengths)], 2)
        self._begun = rest.clone()  # a view would keep all frames in memory
        tokens = [self.tokenizer.encode_next(block, self._past, self._cut(block)) for block in blocks]
        return BlockTokens.join_blocks([self._no_blocks(video), *tokens])

    def finish(self) -> BlockTokens:
        """Repeat the last frame to fill a block that was begun -> its tokens, of G = 0 or 1 blocks."""
        if self._begun is None:
            raise ValueError("this stream has no frames: push some before it is finished")
        video, frames = self._begun, self.frames
        missing = self._next.filled(video.shape[2]) - video.shape[2]
        tokens = self(video[:, :, -1:].expand(-1, -1, missing, -1, -1))
        self.frames, self._finished = frames, True
        return tokens

    @property
    def _next(self) -> TokenizerSpec:
        """Of the blocks from the next one on."""
        spec = self.tokenizer.spec
        return spec if self._past.empty else spec.continued

    def _cut(self, video: Tensor) -> Allocator | None:
        """The allocator of the block of these frames, which refines it too."""
        refine_next, allocator = self._refine_next, self.allocator
        if refine_next is None:
            return allocator
        return lambda tokens: refine_next(video, tokens if allocator is None else allocator(tokens))

    def _no_blocks(self, video: Tensor) -> BlockTokens:
        """(B, 0, L) tokens, with the fields of others."""
        shape = (len(video), 0, self.tokenizer.spec.block_capacity, self.tokenizer.config.encoder.width)
        return all_kept(video.new_zeros(shape[:3], dtype=torch.int64), video.new_zeros(shape))


class StreamDecoder:
    """Tokens of the next blocks of B videos -> their frames."""

    def __init__(self, tokenizer: AdapTok, graphs: Graphs | None = None) -> None:
        """`graphs`: those that other streams share with this one. ValueError for a tokenizer with absolute geometry."""
        self.tokenizer = tokenizer
        self._past = PastBlocks(_window(tokenizer), graphs=graphs or Graphs())
        self._videos: int | None = None

    @property
    def blocks(self) -> int:
        """Blocks so far: the index of the next one."""
        return int(self._past.count)

    def __call__(self, tokens: BlockTokens, first: int | None = None) -> Tensor:
        """The tokens of the next G >= 0 blocks -> (B, 3, T, H, W), about [-1, 1].

        `first`: index of their first block, where the sender gives one. ValueError for blocks out of order, of another
        tokenizer or of another number of videos; the stream is then as before.
        """
        videos, blocks = tokens.keep.shape[:2]
        if first not in (None, self.blocks):
            raise ValueError(f"block {first} is out of order: block {self.blocks} of this stream is the next one")
        if self._videos is not None:
            _check_videos(videos, self._videos)
        if blocks:
            self.tokenizer.check(tokens)
        self._videos = videos
        frames = [torch.zeros(videos, 3, 0, *self.tokenizer.resolution, device=tokens.keep.device)]
        frames += [self.tokenizer.decode_next(tokens.blocks(slice(g, g + 1)), self._past) for g in range(blocks)]
        return torch.cat(frames, 2)


class StreamBudget:
    """An allocator of streams: any `blocks` consecutive blocks of a video keep at most `tokens`, spent without
    look-ahead where the scorer predicts the greatest gain. It belongs to one stream."""

    def __init__(self, predictor: ScorerPredictor, tokens: int, blocks: int, first: int | None = None) -> None:
        """`first`: blocks at the beginning of the video that keep at most `tokens` too, where these are more than
        `blocks`. BudgetError for fewer tokens than the blocks take."""
        self._scorer = ScorerStream(predictor.passes)
        sizes = predictor.sizes
        self._controller = OnlineController(WindowLedger(tokens, blocks, sizes, first), sizes)

    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        """The next blocks (B, G, L), all kept, with their features -> the same, fewer kept."""
        lengths = unset_lengths(tokens)
        for block in range(tokens.keep.shape[1]):
            whole = tokens.select_blocks(slice(block, block + 1))
            lengths[:, block] = self._controller.step(check_curves(self._scorer.score(whole).cpu()))
            self._scorer.append(whole, first_tokens(lengths[:, block : block + 1], whole.keep.shape[2]))
        return tokens.tail_drop(lengths)


def _window(tokenizer: AdapTok) -> int:
    if tokenizer.window is None:
        raise ValueError("this tokenizer codes clips of their own (its geometry is absolute): train one that is rotary")
    return tokenizer.window


def _check_videos(given: int, expected: int) -> None:
    if given != expected:
        raise ValueError(f"this stream is of {expected} videos side by side, got {given}")
