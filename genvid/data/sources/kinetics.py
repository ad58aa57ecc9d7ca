"""Kinetics-600: an annotation file, and as many of its videos as are still to be had."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from genvid.data.clips import ClipConfig
from genvid.data.sources.base import SourceConfig
from genvid.data.sources.files import FileSource, VideoFile, existing_folder
from genvid.data.sources.listing import find_videos
from genvid.data.sources.tables import Row, read_table
from genvid.files import readable

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


@SourceConfig.register_subclass("kinetics600")
@dataclass(frozen=True)
class Kinetics600Config(SourceConfig):
    """Videos `<id>_<start>_<end>.mp4` or `<id>.mp4` below `path`, in class folders or flat, start and end in seconds
    with six digits.

    `annotations` is the CSV of one split: label, youtube_id, time_start, time_end. Its classes are numbered in the
    order of their names, whether their videos are there or not; rows without a video are counted (`left_out`).
    """

    path: str
    annotations: str

    def split_name(self) -> str:
        rows, _ = self._read()
        named = sorted({row.cells.get("split") or "" for row in rows} - {""})
        return " + ".join(named) or Path(self.annotations).stem

    def open(self, clip: ClipConfig, *, strict: bool = False) -> FileSource:
        root = existing_folder(self.path)
        rows, missing = self._read()
        paths, problems = find_videos(root)
        there = {_stem(path): path for path in paths}
        classes = sorted({row.cells["label"] for row in rows})
        numbers = {label: number for number, label in enumerate(classes)}
        files, rows_of = [], Counter(row.cells["youtube_id"] for row in rows)
        for row in rows:
            identity, name = row.cells["youtube_id"], _file_name(row)
            # A file named by its id alone is that of a row only where the id has no other row.
            path = there.get(name or "") or (there.get(identity) if rows_of[identity] == 1 else None)
            if path is not None:
                files.append(VideoFile(path, numbers[row.cells["label"]]))
            elif name is None:
                missing.append(f"{row.place} has no times of {identity} in seconds")
            else:
                missing.append(f"{name} is annotated but is not there")
        if not files and missing and paths:
            raise ValueError(
                f"none of the {len(rows)} videos that {self.annotations} lists is among the {len(paths)} below {root}: "
                f"{missing[0]}, and the first that is there is {readable(paths[0])}"
            )
        files.sort(key=lambda file: file.path)
        return FileSource(
            root,
            files,
            classes,
            clip=clip,
            strict=strict,
            missing=[*missing, *problems],
            split=self.split_name(),
        )

    def _read(self) -> tuple[list[Row], list[str]]:
        table = Path(self.annotations)
        if not table.is_file():
            raise ValueError(f"no annotations {table}; they are the CSV file of a split of Kinetics-600")
        return read_table(table, _COLUMNS)


def _stem(path: str) -> str:
    """The name of a video without its suffix."""
    return Path(path).stem


def _file_name(row: Row) -> str | None:
    """Name of a row's video without suffix; None where its times are no numbers."""
    try:
        start, end = (int(float(row.cells[name])) for name in ("time_start", "time_end"))
    except (ValueError, OverflowError):
        return None
    return f"{row.cells['youtube_id']}_{start:06d}_{end:06d}"
