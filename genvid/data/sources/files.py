"""Clips from video files: a folder of classes, or a manifest. Published data sets build on `FileSource` too."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from genvid.data.clips import ClipConfig
from genvid.data.images import list_images
from genvid.data.sources.base import ALL, HELD_OUT, TRAINING, Source, SourceConfig
from genvid.data.sources.listing import EXTENSIONS, find_video, find_videos, prepared_path
from genvid.data.sources.prepared import IndexedVideo, read_originals, read_prepared
from genvid.data.sources.tables import read_table
from genvid.data.sources.video_index import probe_files
from genvid.data.video import VideoError, VideoInfo, read_clip
from genvid.files import readable

logger = logging.getLogger(__name__)

Listed = tuple[str, str, bool]
"""Path of a video below the root, its class, and whether it is in the split."""


@dataclass(frozen=True)
class VideoFile:
    """One row of a listing: a path below the root, and its class."""

    path: str
    label: int


class FileSource(Source):
    """Clips of files below `root`. Unusable files are named, counted and left out; with `strict` they are an error."""

    def __init__(
        self,
        root: Path,
        files: Sequence[VideoFile],
        classes: list[str],
        *,
        clip: ClipConfig,
        strict: bool,
        missing: Sequence[str] = (),
        split: str = ALL,
    ) -> None:
        """`missing`: one sentence for each video that a list names and that is not there."""
        if not files and missing:
            raise ValueError(f"none of the {len(missing)} listed videos can be used: {readable(missing[0])}")
        if not files:
            raise ValueError(f"no video files under {root} (looked for {', '.join(EXTENSIONS)})")
        self.root, self.classes, self.config, self.split = root, classes, clip, split
        self._items: list[tuple[str, VideoInfo, int | None]] = []
        self.digests: dict[str, str] = {}
        self.labels, self.names, problems, digests = [], [], [readable(problem) for problem in missing], []
        prepared = read_prepared(root, clip)
        found = probe_files(root, [root / file.path for file in files], prepared)
        for file, video in zip(files, found, strict=True):
            if isinstance(video, IndexedVideo) and (reason := clip.refusal(video.info)):
                video = VideoError(f"{root / file.path} {reason}")
            if isinstance(video, VideoError):
                problems.append(readable(str(video)))
                continue
            digests.append(video.digest)
            self.digests[file.path] = video.digest
            for start in _window_starts(video.info, clip):
                self._items.append((file.path, video.info, start))
                self.labels.append(file.label)
                name = readable(file.path)
                self.names.append(name if start is None else f"{name}#{start}")
        self.videos, self.left_out, self.prepared = len(digests), problems, bool(prepared)
        self.contents = hashlib.sha256(" ".join(digests).encode()).hexdigest()
        if problems:
            without = [classes[label] for label in sorted({file.label for file in files} - set(self.labels))]
            _report(problems, total=len(files) + len(missing), strict=strict, without=without)

    def listing(self) -> dict[str, VideoInfo]:
        """The usable videos: path below the root -> properties of the file."""
        return {path: info for path, info, _ in self._items}

    def clip(self, index: int, seed: int) -> Tensor:
        path, info, start = self._items[index]
        if start is None:
            start = self.config.start(info.frames, seed)
        length = self.config.length(info.frames)
        frames = read_clip(self.root / path, start, length, self.config.stride, info=info)
        return self.config.fit(torch.from_numpy(frames), seed)


@SourceConfig.register_subclass("folder")
@dataclass(frozen=True)
class FolderConfig(SourceConfig):
    """Video files and folders of pictures below a folder; the first subfolder is the class, and a flat folder is one
    class.

    With a `manifest` (TSV or CSV with columns file, split, label; files are relative to the manifest) only its rows
    below `path` count, and of these the rows of `split`. Labels are numbered over all splits. Without one, `held_out`
    sets the last eighth of the videos of each class (in order of their names, at least one) apart: True lists these,
    False the others.
    """

    path: str
    manifest: str | None = None
    split: str | None = None
    held_out: bool | None = None

    def __post_init__(self) -> None:
        if self.held_out is not None and self.manifest is not None:
            raise ValueError("a manifest has its own splits: use `split`, and `held_out: null`")
        if self.split is not None and self.manifest is None:
            raise ValueError(f"split '{self.split}' of {self.path} needs a manifest that lists its files")

    def split_name(self) -> str:
        if self.held_out is None:
            return self.split or ALL
        return HELD_OUT if self.held_out else TRAINING

    def open(self, clip: ClipConfig, *, strict: bool = False) -> FileSource:
        root = existing_folder(self.path)
        names, missing = self._scan(root) if self.manifest is None else self._select(root, Path(self.manifest))
        classes = sorted({label for _, label, _ in names})
        files = [VideoFile(path, classes.index(label)) for path, label, chosen in names if chosen]
        classes = [readable(name) for name in classes]
        return FileSource(root, files, classes, clip=clip, strict=strict, missing=missing, split=self.split_name())

    def _scan(self, root: Path) -> tuple[list[Listed], list[str]]:
        paths, problems = find_videos(root)
        there, originals = set(paths), read_originals(root, required=self.held_out is not None)
        if originals is not None:
            paths = originals
        if not paths and list_images(root):
            raise ValueError(f"{root} holds the pictures of one video: path is the folder that holds such folders")
        loose = [path for path in paths if "/" not in path]
        if loose and len(loose) < len(paths):
            raise ValueError(f"{root} mixes files ({loose[0]}) and class folders; move the files into a class folder")
        labels = [root.absolute().name if loose else path.partition("/")[0] for path in paths]
        counts, seen = Counter(labels), Counter[str]()
        names = []
        for path, label in zip(paths, labels, strict=True):
            seen[label] += 1
            apart = seen[label] > counts[label] - max(1, counts[label] // 8)
            file, chosen = path if originals is None else prepared_path(path), self.held_out in (None, apart)
            names.append((file, label, chosen and file in there))
        single = [readable(label) for label, count in counts.items() if count == 1]
        if self.held_out is False and single:
            if len(single) == len(counts):
                raise ValueError(
                    f"each class of {root} has one video, which is held out, so no video is left for training: "
                    "add videos, or set held_out: null and measure on other videos"
                )
            logger.warning("classes of one video, which is held out, have none for training: %s", ", ".join(single))
        return names, problems

    def _select(self, root: Path, manifest: Path) -> tuple[list[Listed], list[str]]:
        if not manifest.is_file():
            raise ValueError(f"no manifest {manifest}")
        delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
        rows, missing = read_table(manifest, ("file", "split", "label"), delimiter)
        names, splits, outside = [], set(), []
        for _, row in rows:
            file = Path(os.path.normpath(manifest.parent.absolute() / row["file"]))
            if not file.is_relative_to(root.absolute()):
                outside.append(file)
                continue
            listed = str(file.relative_to(root.absolute()))
            path, chosen = find_video(root, listed), self.split in (None, row["split"])
            if path is not None and (root / path).is_file() and Path(path).suffix.lower() not in EXTENSIONS:
                continue
            splits.add(row["split"])
            names.append((path or listed, row["label"] or "unlabelled", chosen and path is not None))
            if chosen and path is None:
                missing.append(f"{root / listed} is listed but is not there")
        if outside and not names:
            raise ValueError(f"{manifest} lists no video below {root}: the first of its {len(rows)} is {outside[0]}")
        if names and self.split not in (None, *splits):
            raise ValueError(f"{manifest} has no split '{self.split}' under {root}; it has {', '.join(sorted(splits))}")
        return names, missing


def existing_folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise ValueError(f"no folder {path}")
    return Path(path)


def _window_starts(info: VideoInfo, clip: ClipConfig) -> list[int | None]:
    """Start of each item that a file gives; None where the clip's seed decides."""
    if clip.window == "random":
        return [None]
    return [*range(0, info.frames - clip.span + 1, clip.span)] if clip.window == "all" else [0]


def _report(problems: list[str], *, total: int, strict: bool, without: list[str]) -> None:
    """`without`: classes of which no video is left."""
    named = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
    message = f"{len(problems)} of {total} video files cannot be used: {named}"
    if strict or len(problems) == total:
        raise ValueError(message)
    emptied = f", and no video of {', '.join(map(readable, without))} remains" if without else ""
    logger.warning("%s. They are left out%s", message, emptied)
