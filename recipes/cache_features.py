"""Compute the features of a teacher once: python recipes/cache_features.py CONFIG.yaml [--key value ...]

A tokenizer with `objective.semantic.teacher: {type: files, folders: [OUTPUT_DIR]}` then reads them. Clips must be the
same in every epoch: window first or all, a centre crop, nothing varied.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from genvid import config as configuration
from genvid.command import command
from genvid.data.dataset import VideoData
from genvid.data.loader import one_pass
from genvid.device import device
from genvid.tokenizer.teachers import TeacherConfig
from genvid.tokenizer.teachers.stored import FeatureRecord, store_features
from genvid.tokens.frame_blocks import FrameBlocks, fill_first


@dataclass(frozen=True, kw_only=True)
class FeatureRun:
    """A dataset, a teacher and the folder of its features."""

    output_dir: str
    data: VideoData
    teacher: TeacherConfig
    block_frames: int = 4
    """Frames of a block of the tokenizer."""
    single_first_frame: bool = False
    """As in the geometry of the tokenizer."""
    batch_size: int = 16
    """Clips at a time; affects memory, not results."""
    workers: int = 2

    def __post_init__(self) -> None:
        configuration.check_counts(self, "batch_size")
        clip = self.data.clip
        if clip.drawn:
            raise ValueError(
                "features are of clips that are the same in every epoch: set data.clip.window to first or all and "
                "data.clip.crop to center, and leave out zoom, flip, turn, reverse and recolour"
            )
        self.frame_blocks.num_blocks(clip.frames)

    @property
    def frame_blocks(self) -> FrameBlocks:
        """The blocks of the tokenizer."""
        return FrameBlocks(self.block_frames, single_first_frame=self.single_first_frame)


def cache_features(run: FeatureRun) -> Path:
    """Write the features; returns their folder."""
    dataset, teacher, folder = run.data.open(), run.teacher.build().to(device()), Path(run.output_dir)
    dataset.strict = True  # another clip in the place of a broken one would be stored twice
    blocks = run.frame_blocks.num_blocks(run.data.clip.frames)
    record = FeatureRecord(teacher.name, dataset.fingerprint(), blocks)
    batches = one_pass(dataset, batch_size=run.batch_size, workers=run.workers, device=device())
    bar = tqdm(batches, desc="features", unit="batch", total=-(-len(dataset) // run.batch_size))
    videos = (fill_first(batch["video"], run.block_frames) for batch in bar)  # as a tokenizer's blocks are filled
    store_features(folder, teacher, videos, record, len(dataset))
    return folder


@command
def main(argv: Sequence[str]) -> None:
    usage = "python recipes/cache_features.py CONFIG.yaml [--key value ...]"
    print(f"cached {cache_features(configuration.parse(FeatureRun, argv, usage=usage))}")


if __name__ == "__main__":
    main(sys.argv[1:])
