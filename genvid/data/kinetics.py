"""Kinetics-600: an annotation file, and as many of its videos as are still to be had."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from genvid.data.clips import ClipConfig
from genvid.data.folders import EXTENSIONS, FileSource, VideoFile, existing_folder
from genvid.data.source import SourceConfig

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


@SourceConfig.register_subclass("kinetics600")
@dataclass(frozen=True)
class Kinetics600Config(SourceConfig):
    """Videos `<id>_<start>_<end>.mp4` below `path`, in class folders or flat, start and end in seconds with six digits.

    `annotations` is the CSV of one split: label, youtube_id, time_start, time_end. Its classes are numbered in the
    order of their names, whether their videos are there or not; rows without a video are counted (`left_out`).
    """

    path: str
    annotations: str

    def open(self, clip: ClipConfig, *, strict: bool = False) -> FileSource:
        root, table = existing_folder(self.path), Path(self.annotations)
        if not table.is_file():
            raise ValueError(f"no annotations {table}; they are the CSV file of a split of Kinetics-600")
        with table.open(newline="") as stream:
            reader = csv.DictReader(stream)
            lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise ValueError(f"{table} lacks the column {', '.join(lacking)}")
            rows = [(row["label"], _file_name(row, table)) for row in reader]
        there = {path.stem: path for path in sorted(root.rglob("*")) if path.suffix.lower() in EXTENSIONS}
        classes = sorted({label for label, _ in rows})
        numbers = {label: number for number, label in enumerate(classes)}
        files = [VideoFile(str(there[name].relative_to(root)), numbers[label]) for label, name in rows if name in there]
        missing = [f"{name} is annotated but is not there" for _, name in rows if name not in there]
        files.sort(key=lambda file: file.path)
        return FileSource(root, files, classes, clip=clip, strict=strict, missing=missing)


def _file_name(row: dict[str, str], table: Path) -> str:
    try:
        return f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
    except ValueError:
        times = f"{row['time_start']!r} and {row['time_end']!r}"
        raise ValueError(f"{table}: times of {row['youtube_id']} are seconds, got {times}") from None
