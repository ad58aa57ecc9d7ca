"""Clips that show an allocation: originals, and reconstructions at several budgets with the tokens of each block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from genvid import noise
from genvid.data.animation import write_animation
from genvid.data.dataset import ClipDataset
from genvid.data.images import jpeg
from genvid.data.video import video_bytes
from genvid.eval.pages.page import Clip, Section
from genvid.eval.pages.pictures import side_by_side, stacked, timeline
from genvid.eval.selection import Selection
from genvid.files import write_atomically


@dataclass(frozen=True)
class Example:
    """A clip, uint8 (3, T, H, W), and by budget its reconstruction with the lengths of its blocks."""

    name: str
    original: Tensor
    versions: dict[float, tuple[Tensor, list[int]]]


def draw_videos(dataset: ClipDataset, count: int, seed: int) -> Selection:
    """All windows of `count` of the videos, drawn by `seed` and not chosen."""
    windows = groupby(range(len(dataset)), lambda index: _video(dataset.name(index)))
    videos = [list(indices) for _, indices in windows]
    drawn = noise.permutation(seed, "examples", len(videos))[:count].tolist()
    return Selection(dataset, [(index, index) for video in drawn for index in videos[video]])


def join_windows(clips: Sequence[Example]) -> list[Example]:
    """Consecutive windows of a video -> the video."""
    videos = []
    for name, several in groupby(clips, lambda clip: _video(clip.name)):
        parts = list(several)
        versions = {
            budget: (
                torch.cat([part.versions[budget][0] for part in parts], 1),
                [length for part in parts for length in part.versions[budget][1]],
            )
            for budget in parts[0].versions
        }
        videos.append(Example(name, torch.cat([part.original for part in parts], 1), versions))
    return videos


def add_examples(section: Section, examples: Sequence[Example], capacity: int, fps: float) -> None:
    """A row for each clip: the original, and its reconstruction at each budget with the tokens of its blocks."""
    if not examples:
        return
    scale = max(1, 128 // examples[0].original.shape[-1])
    rows = {}
    for clip in examples:
        versions = [
            Clip(video_bytes(video, fps, scale=scale), f"{sum(lengths)} tokens", lengths, capacity)
            for video, lengths in clip.versions.values()
        ]
        rows[clip.name] = [Clip(video_bytes(clip.original, fps, scale=scale)), *versions]
    section.comparison(["original", *(f"mean budget {budget:g}" for budget in examples[0].versions)], rows)


def write_pictures(folder: Path, examples: Sequence[Example], capacity: int, fps: float) -> None:
    """Write reconstructions.webp, originals above their reconstructions by rising budget; and tokens_BUDGET.jpg, the
    tokens of each block over time, of at most `capacity`. The line is their mean over all videos."""
    frames = min(clip.original.shape[1] for clip in examples)
    columns = [[clip.original, *(video for video, _ in clip.versions.values())] for clip in examples]
    wall = side_by_side([[video[:, :frames] for video in row] for row in zip(*columns, strict=True)])
    write_animation(folder / "reconstructions.webp", wall, fps)
    for budget in examples[0].versions:
        lengths = [clip.versions[budget][1] for clip in examples]
        mean = sum(map(sum, lengths)) / sum(map(len, lengths))
        strips = [timeline(clip.original, own, capacity, mean) for clip, own in zip(examples, lengths, strict=True)]
        with write_atomically(folder / f"tokens_{budget:g}.jpg") as temporary:
            temporary.write_bytes(jpeg(stacked(strips)))


def _video(name: str) -> str:
    """Name of the video of a window."""
    return name.partition("#")[0]
