"""Features of a teacher in files: computed once by recipes/cache_features.py, read while a tokenizer is trained.

A folder holds `keys.npy` (N,), `patches.npy` (N, G, h, w, D) and `pooled.npy` (N, G, D), both in float16, and, written
last, `features.json`: the teacher and the clips. Clips are found by their pixels, so that order, batches, processes and
held-out clips need no bookkeeping.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from genvid import config as configuration
from genvid import noise
from genvid.data.clips import to_uint8
from genvid.data.dataset import ClipDataset
from genvid.files import write_json
from genvid.tokenizer.teachers.base import Teacher, TeacherConfig

RECORD = "features.json"
_WAY_OUT = "compute them with recipes/cache_features.py, with the same source and clip rule, or set another teacher"


@dataclass(frozen=True)
class FeatureRecord:
    """Where the features of a folder come from."""

    teacher: str
    """Its name, with the fingerprint of its weights."""
    clips: str
    """Fingerprint of the clips: files, their content, clip rule."""
    blocks: int


class StoredTeacher(Teacher):
    """The features in folders of `store_features`; clips without features are refused."""

    def __init__(self, folders: Iterable[str]) -> None:
        super().__init__()
        self.folders = [Path(folder) for folder in folders]
        self.records = [_read_record(folder) for folder in self.folders]
        self._patches, self._pooled, keys = (
            [np.load(folder / f"{name}.npy", mmap_mode="r") for folder in self.folders]
            for name in ("patches", "pooled", "keys")
        )
        alike = [
            f"{record.teacher}, {patches.shape[1:]}"
            for record, patches in zip(self.records, self._patches, strict=True)
        ]
        if len(set(alike)) != 1:
            found = "; ".join(f"{folder}: {its}" for folder, its in zip(self.folders, alike, strict=True))
            raise ValueError(f"folders of features are of one teacher and of one shape, got {found}")
        self._places = {key: (folder, row) for folder, rows in enumerate(keys) for row, key in enumerate(rows.tolist())}
        self._listed = f"there are no features in {', '.join(map(str, self.folders))}"
        self.name, self.width = self.records[0].teacher, self._pooled[0].shape[-1]

    def check(self, datasets: Sequence[object]) -> None:
        known = {record.clips for record in self.records}
        for dataset in datasets:
            if not isinstance(dataset, ClipDataset) or dataset.fingerprint() not in known:
                raise ValueError(f"{self._listed} of {_described(dataset)}: {_WAY_OUT}")

    def extract(self, video: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        places = [place for key in clip_keys(video).tolist() if (place := self._places.get(key))]
        if len(places) < len(video) or blocks != self.records[0].blocks:
            raise ValueError(f"{self._listed} of {blocks} blocks of a clip of this batch: {_WAY_OUT}")
        patches, pooled = (
            torch.from_numpy(np.stack([stored[folder][row] for folder, row in places])).to(video.device)
            for stored in (self._patches, self._pooled)
        )
        return patches, pooled


@TeacherConfig.register_subclass("files")
@dataclass(frozen=True)
class StoredTeacherConfig(TeacherConfig):
    """Folders of recipes/cache_features.py: of the training clips and of held-out ones."""

    folders: tuple[str, ...]

    def build(self) -> StoredTeacher:
        return StoredTeacher(self.folders)


def store_features(folder: Path, teacher: Teacher, videos: Iterable[Tensor], record: FeatureRecord, clips: int) -> None:
    """Write the features of `clips` clips, of batches (B, 3, T, H, W) in [-1, 1]."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    keys, files, row = np.empty(clips, np.int64), list[np.memmap](), 0
    for video in videos:
        made = [part.half().cpu().numpy() for part in teacher(video, record.blocks)]
        if not files:
            names = ("patches", "pooled")
            files = [
                open_memmap(folder / f"{name}.npy", "w+", np.float16, (clips, *part.shape[1:]))
                for name, part in zip(names, made, strict=True)
            ]
        rows = slice(row, row := row + len(video))
        keys[rows] = clip_keys(video).cpu().numpy()
        for file, part in zip(files, made, strict=True):
            file[rows] = part
    for file in files:
        file.flush()
    np.save(folder / "keys.npy", keys)
    write_json(folder / RECORD, asdict(record))


def clip_keys(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [-1, 1] -> (B,) int64, the same for the same pixels in 8 bits on every device."""
    places = torch.arange(video[0].numel(), device=video.device)
    return torch.stack([noise.fold(places, to_uint8(clip).flatten().long()).sum() for clip in video])


def _described(dataset: object) -> str:
    """The clips of a data set, for a message."""
    if not isinstance(dataset, ClipDataset):
        return "clips of several sizes"
    return f"these {len(dataset):,} clips ({dataset.name(0)}, ...)"


def _read_record(folder: Path) -> FeatureRecord:
    if not (folder / RECORD).is_file():
        raise ValueError(f"no features in {folder}, or unfinished ones: run recipes/cache_features.py to the end")
    return configuration.decode(FeatureRecord, configuration.read_json(folder / RECORD), source=str(folder / RECORD))
