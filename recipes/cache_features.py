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


@dataclass(frozen=True, kw_only=True)
class FeatureRun:
    """A dataset, a teacher and the folder of its features."""

    output_dir: str
    data: VideoData
    teacher: TeacherConfig
    block_frames: int = 4
    """Frames of a block of the tokenizer."""
    batch_size: int = 16
    """Clips at a time; affects memory, not results."""
    workers: int = 2

    def __post_init__(self) -> None:
        clip = self.data.clip
        if clip.drawn:
            raise ValueError(
                "features are of clips that are the same in every epoch: set data.clip.window to first or all and "
                "data.clip.crop to center, and leave out zoom, flip, turn, reverse and recolour"
            )
        if clip.frames % self.block_frames:
            raise ValueError(f"clips of {clip.frames} frames are no blocks of block_frames {self.block_frames}")


def cache_features(run: FeatureRun) -> Path:
    """Write the features; returns their folder."""
    dataset, teacher, folder = run.data.open(), run.teacher.build().to(device()), Path(run.output_dir)
    dataset.strict = True  # another clip in the place of a broken one would be stored twice
    record = FeatureRecord(teacher.name, dataset.fingerprint(), run.data.clip.frames // run.block_frames)
    batches = one_pass(dataset, batch_size=run.batch_size, workers=run.workers, device=device())
    bar = tqdm(batches, desc="features", unit="batch", total=-(-len(dataset) // run.batch_size))
    store_features(folder, teacher, bar, record, len(dataset))
    return folder


@command
def main(argv: Sequence[str]) -> None:
    usage = "python recipes/cache_features.py CONFIG.yaml [--key value ...]"
    print(f"cached {cache_features(configuration.parse(FeatureRun, argv, usage=usage))}")


if __name__ == "__main__":
    main(sys.argv[1:])
