"""Training on clips of several lengths and sizes: every step has clips of one bucket, and about the same work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from genvid.data.clips import ClipConfig
from genvid.data.dataset import ClipDataset, VideoData
from genvid.tokens.frame_blocks import FrameBlocks


@dataclass(frozen=True)
class BucketConfig:
    """A length and size of clips. The rest of the rule is that of `data.clip`."""

    frames: int
    resolution: tuple[int, int]
    """Height and width."""
    still: bool = False
    """Repeat one frame: a picture as it is coded, unless the first block has a single frame (`frames` 1)."""
    share: int = 1
    """Steps of each cycle that are of this bucket."""

    def __post_init__(self) -> None:
        if self.share < 1:
            raise ValueError(f"share of a bucket is at least 1 step, got {self.share}")

    def clip(self, rule: ClipConfig) -> ClipConfig:
        """The rule for clips as they are tokenized."""
        return replace(rule, frames=self.frames, resolution=self.resolution)

    def batch_size(self, clips: int, rule: ClipConfig, blocks: FrameBlocks) -> int:
        """Clips that are as much work as `clips` clips of `rule`: the area of a frame times the number of blocks.

        A multiple of gcd(`clips`, 8), so that as many processes divide it, and independent of their number.
        """
        unit = math.gcd(clips, 8)
        whole, own = (blocks.num_blocks(clip.frames) * math.prod(clip.resolution) for clip in (rule, self.clip(rule)))
        return max(1, round(clips * (whole / own) / unit)) * unit


class BucketedClips(Dataset[dict[str, Tensor]]):
    """The clips of a source by the rule of each bucket: items of the first bucket, then those of the next."""

    def __init__(self, data: VideoData, buckets: Sequence[BucketConfig], blocks: FrameBlocks) -> None:
        """`blocks`: of the tokenizer."""
        self.rule, self.buckets, self.blocks = data.clip, tuple(buckets), blocks
        rules = [replace(bucket.clip(data.clip), frames=1 if bucket.still else bucket.frames) for bucket in buckets]
        self.parts = [ClipDataset(data.source, rule, strict=data.strict) for rule in rules]
        self.ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        index, seed = item
        number = int(torch.searchsorted(self.ends, index, right=True))
        bucket, part = self.buckets[number], self.parts[number]
        sample = part[index - int(self.ends[number]) + len(part), seed]
        if bucket.still:
            sample["video"] = sample["video"].expand(-1, bucket.frames, -1, -1).contiguous()
        return sample

    def batch_sizes(self, clips: int) -> list[int]:
        """Clips of a step of each bucket."""
        return [bucket.batch_size(clips, self.rule, self.blocks) for bucket in self.buckets]

    @property
    def failed(self) -> list[str]:
        """Names of the items that could not be read so far, in any data worker."""
        return sorted({name for part in self.parts for name in part.failed})

    def describe(self) -> dict[str, Any]:
        """Record of the data (genvid.provenance)."""
        return {f"bucket {number}": part.describe() for number, part in enumerate(self.parts)}
