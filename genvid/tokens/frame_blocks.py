"""Frames <-> blocks: the causal blocks that the frames of a video are cut into, and the clips that it is coded in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

LONGEST_CLIP = 64
"""Blocks of a clip where the tokenizer sets no limit."""


class ClipFrames(NamedTuple):
    """One of the consecutive clips of a video."""

    frames: int
    """Of the video."""
    filling: int
    """Copies of its last frame that fill its last block."""
    blocks: int


@dataclass(frozen=True)
class FrameBlocks:
    """How a video is cut into blocks."""

    frames_per_block: int
    single_first_frame: bool = field(default=False, kw_only=True)
    """The first block of a video has one frame: a picture is a video of one frame."""
    stream: bool = field(default=False, kw_only=True)
    """Consecutive clips of a video continue each other; else each is a video by itself."""
    max_blocks: int | None = field(default=None, kw_only=True)
    """Most blocks of a video; None: any number."""

    @property
    def continued(self) -> Self:
        """The blocks of a video after its first one."""
        return replace(self, single_first_frame=False)

    def num_blocks(self, frames: int) -> int:
        """Blocks of a clip of `frames` frames; raises ValueError when the tokenizer cannot take that length."""
        blocks = self.covering(frames)
        if not blocks or self.longest_clip(blocks) != frames:
            raise ValueError(f"a clip of {frames} frames does not fill {self.described}; use {self.lengths()}")
        if self.max_blocks is not None and blocks > self.max_blocks:
            raise ValueError(
                f"a clip of {frames} frames needs {blocks} blocks but this tokenizer holds at most "
                f"{self.max_blocks} ({self.longest_clip(self.max_blocks)} frames)"
            )
        return blocks

    def covering(self, frames: int) -> int:
        """Fewest blocks that hold so many frames."""
        return -(-(frames + self._missing) // self.frames_per_block) if frames else 0

    def complete(self, frames: int) -> int:
        """Blocks that so many frames complete."""
        return (frames + self._missing) // self.frames_per_block

    def filled(self, frames: int) -> int:
        """`frames`, rounded up to complete blocks."""
        return self.longest_clip(self.covering(frames))

    def longest_clip(self, blocks: int) -> int:
        """Frames of the longest clip of at most so many blocks."""
        return blocks * self.frames_per_block - self._missing if blocks else 0

    def frames_of(self, block: int) -> int:
        """Frames of the block of this number."""
        return self.frames_per_block if block else self.frames_per_block - self._missing

    def block_frames(self, blocks: int) -> list[int]:
        """Frames of each block of a clip of so many."""
        return [self.frames_of(block) for block in range(blocks)]

    def span(self, block: int) -> slice:
        """The frames of the block of this number in its clip."""
        start = sum(self.block_frames(block))
        return slice(start, start + self.frames_of(block))

    def clips(self, frames: int) -> list[ClipFrames]:
        """The consecutive clips of a video of so many frames, each of at most `max_blocks` blocks."""
        clips, left, part = list[ClipFrames](), frames, self
        while left:
            count = min(left, part.longest_clip(self.max_blocks or LONGEST_CLIP))
            filled = part.filled(count)
            clips.append(ClipFrames(count, filled - count, part.num_blocks(filled)))
            left, part = left - count, self.continued if self.stream else self
        return clips

    @property
    def described(self) -> str:
        """For messages."""
        behind = " behind a single first frame" if self.single_first_frame else ""
        return f"blocks of {self.frames_per_block} frames{behind}"

    def lengths(self) -> str:
        """Lengths of clips, for messages."""
        return f"{'1 more than ' if self.single_first_frame else ''}a multiple of {self.frames_per_block}"

    @property
    def _missing(self) -> int:
        """Frames that the first block has fewer than the others."""
        return self.frames_per_block - 1 if self.single_first_frame else 0


def fill_first(video: Tensor, frames: int) -> Tensor:
    """(B, 3, T, H, W) with as many copies of the first frame before it as make T a multiple of `frames`."""
    missing = -video.shape[2] % frames
    return torch.cat([video[:, :, :1].expand(-1, -1, missing, -1, -1), video], 2) if missing else video


def repeat_last(video: Tensor, count: int) -> Tensor:
    """(B, 3, T, H, W) -> (B, 3, T + count, H, W): its last frame so many times more."""
    return torch.cat([video, video[:, :, -1:].expand(-1, -1, count, -1, -1)], 2)
