"""A video under a tokenizer: encoded once, decoded at any budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from genvid.api import Tokenizer
from genvid.data.arrays import Array
from genvid.data.clips import read_clips, to_float, to_uint8
from genvid.data.video import probe
from genvid.eval.metrics.fidelity import ClipPSNR
from genvid.tokens import BlockTokens

MOST_FRAMES = 512
"""Frames of a video that are read: the pixels and tokens of all of them are held in memory."""


CLIP_BLOCKS = 4
"""Blocks of a clip where the tokenizer sets no limit: a moved slider waits for a clip."""


@dataclass(frozen=True)
class CodedBlock:
    """A block of a reconstruction."""

    frames: Tensor
    """(3, T, H, W) uint8."""
    tokens: int
    psnr: float
    """Decibels over the frames of the block, after rounding to 8 bits."""


@dataclass(frozen=True)
class CodedClip:
    """A clip of a reconstruction."""

    number: int
    first_block: int
    """Number of its first block in the video."""
    blocks: tuple[CodedBlock, ...]
    bits: float
    """Of its tokens and of the keep mask, without entropy coding."""

    @property
    def num_frames(self) -> int:
        return sum(block.frames.shape[1] for block in self.blocks)


class CodedVideo:
    """The first `MOST_FRAMES` frames of a video file, resized and cropped for a tokenizer.

    A clip is encoded when it is first decoded, and its tokens and encoder features stay in memory: another budget
    costs the allocation and the decoder alone.
    """

    def __init__(self, tokenizer: Tokenizer, path: str | Path) -> None:
        """VideoError where the file is no video."""
        info, self.tokenizer, self.spec = probe(path), tokenizer, tokenizer.model.spec
        self.fps, self.frames = info.fps, min(info.frames, MOST_FRAMES)
        cut = replace(self.spec, max_blocks=self.spec.max_blocks or CLIP_BLOCKS, stream=False)
        clips = read_clips(path, replace(info, frames=self.frames), cut)
        self.clips = [to_uint8(clip) for clip in clips]
        self.blocks = [self.spec.num_blocks(clip.shape[1]) for clip in self.clips]
        self._tokens: dict[int, BlockTokens] = {}

    @property
    def num_blocks(self) -> int:
        return sum(self.blocks)

    @property
    def rates(self) -> tuple[int, int]:
        """The least and the most tokens a second."""
        predictor, blocks = self.tokenizer.predictor, self._blocks_per_second
        least = 1 if predictor is None else int(predictor.sizes[0])
        return math.ceil(least * blocks), math.ceil(self.spec.block_capacity * blocks)

    @property
    def _blocks_per_second(self) -> float:
        """Of clips of full length."""
        longest = self.spec.longest_clip(self.spec.max_blocks or CLIP_BLOCKS)
        return self.fps * self.spec.num_blocks(longest) / longest

    def original(self) -> list[Tensor]:
        """The frames (3, T, H, W) uint8 of each block."""
        return [block for number, clip in enumerate(self.clips) for block in self._blocks_of(number, clip)]

    def frames_before(self, frame: int) -> Array:
        """(T, H, W, 3) uint8 frames up to `frame`, without it."""
        return torch.cat(self.clips, 1)[:, : min(frame, self.frames)].permute(1, 2, 3, 0).numpy()

    @torch.no_grad()
    def at(self, tokens_per_second: float, frame: int = 0) -> Iterator[CodedClip]:
        """Clips at a budget, each yielded as it is decoded: from the one that holds `frame` to the last, then those
        before it. Of the first one, the first block is yielded alone before the complete clip, where tokens are codes:
        that takes a third of the time.

        The budget holds for each clip by itself, in proportion to its blocks: a clip of a single first frame has the
        tokens of a block. BudgetError where it is too small for the tokenizer.
        """
        first_blocks = [0, *accumulate(self.blocks)]
        ends = accumulate(clip.shape[1] for clip in self.clips)
        begin = next((number for number, end in enumerate(ends) if frame < end), 0)
        for number in [*range(begin, len(self.clips)), *range(begin)]:
            tokens = self._allocated(number, tokens_per_second)
            if number == begin and tokens.codes is not None:
                yield self._decoded(number, first_blocks[number], tokens.blocks(slice(1)))
            yield self._decoded(number, first_blocks[number], tokens)

    def _allocated(self, number: int, tokens_per_second: float) -> BlockTokens:
        """The tokens of a clip at a budget."""
        count, device = self.blocks[number], self.tokenizer.device
        full = count if self.spec.max_blocks is None else self.spec.max_blocks
        tokens = int(tokens_per_second * full / self._blocks_per_second + 1e-6)
        return self.tokenizer.budget(tokens).allocator(count)(self._encoded(number).to(device))

    def _decoded(self, number: int, first_block: int, tokens: BlockTokens) -> CodedClip:
        """The frames of a clip, or of its first blocks."""
        pixels = to_uint8(self.tokenizer.model.decode(tokens)[0]).cpu()
        pairs = zip(self._blocks_of(number, pixels), self._blocks_of(number, self.clips[number]), strict=False)
        blocks = [
            CodedBlock(ours, length, _psnr(ours, real))
            for (ours, real), length in zip(pairs, tokens.lengths[0].tolist(), strict=False)
        ]
        return CodedClip(number, first_block, tuple(blocks), float(self.spec.clip_bits(tokens)[0]))

    def _encoded(self, number: int) -> BlockTokens:
        """All tokens of a clip with the features that allocators read, on the CPU."""
        if number not in self._tokens:
            clip = to_float(self.clips[number])[None].to(self.tokenizer.device)
            self._tokens[number] = self.tokenizer.model.encode(clip).to("cpu")
        return self._tokens[number]

    def _blocks_of(self, number: int, clip: Tensor) -> list[Tensor]:
        """(3, T, H, W) of a clip -> its blocks, without the frames that only fill the last of them."""
        video_frames = self.frames - sum(before.shape[1] for before in self.clips[:number])
        ends = accumulate(self.spec.block_frames(self.blocks[number]))
        starts_and_ends = pairwise([0, *(min(end, video_frames) for end in ends)])
        return [clip[:, start:end] for start, end in starts_and_ends if start < end]


def _psnr(video: Tensor, target: Tensor) -> float:
    return float(ClipPSNR().score(to_float(video)[None], to_float(target)[None]))
