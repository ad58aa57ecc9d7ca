"""Clips from video files: a folder of classes, or a manifest. Published data sets build on `FileSource` too."""

from __future__ import annotations

import csv
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from genvid.data.clips import ClipConfig
from genvid.data.prepared import SUFFIX, IndexedVideo, read_prepared
from genvid.data.probes import probe_files
from genvid.data.source import Source, SourceConfig
from genvid.data.video import VideoError, VideoInfo, read_clip

logger = logging.getLogger(__name__)

EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")


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
    ) -> None:
        """`missing`: what is wrong with videos that a list names and that are not there."""
        if not files:
            raise ValueError(f"no video files under {root} (looked for {', '.join(EXTENSIONS)})")
        self.root, self.classes, self.config = root, classes, clip
        self._items: list[tuple[str, VideoInfo, int | None]] = []
        self.labels, self.names, problems, digests = [], [], list(missing), []
        prepared = read_prepared(root, clip)
        found = probe_files(root, [root / file.path for file in files], prepared)
        for file, video in zip(files, found, strict=True):
            if isinstance(video, IndexedVideo) and video.info.frames < clip.span:
                video = VideoError(f"{root / file.path} has {video.info.frames} frames but a clip needs {clip.span}")
            if isinstance(video, VideoError):
                problems.append(str(video))
                continue
            digests.append(video.digest)
            for start in _window_starts(video.info, clip):
                self._items.append((file.path, video.info, start))
                self.labels.append(file.label)
                self.names.append(file.path if start is None else f"{file.path}#{start}")
        self.videos, self.left_out, self.prepared = len(digests), problems, bool(prepared)
        self.contents = hashlib.sha256(" ".join(digests).encode()).hexdigest()
        if problems:
            _report(problems, total=len(files) + len(missing), strict=strict)

    def listing(self) -> dict[str, VideoInfo]:
        """The usable videos: path below the root -> what is in the file."""
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
    """Video files below a folder; the first subfolder is the class, and a flat folder is one class.

    With a `manifest` (TSV or CSV with columns file, split, label; files are relative to the manifest) only its rows
    below `path` count, and of these the rows of `split`. Labels are numbered over all splits. Without one, `held_out`
    sets the last eighth of the files of each class (in order of their names, at least one) apart: True lists these,
    False the others.
    """

    path: str
    manifest: str | None = None
    split: str | None = None
    held_out: bool | None = None

    def __post_init__(self) -> None:
        if self.held_out is not None and self.manifest is not None:
            raise ValueError("a manifest has its own splits: use `split`, not `held_out`")
        if self.split is not None and self.manifest is None:
            raise ValueError(f"split '{self.split}' of {self.path} needs a manifest that says which files it holds")

    def open(self, clip: ClipConfig, *, strict: bool = False) -> FileSource:
        root = existing_folder(self.path)
        names = self._scan(root) if self.manifest is None else self._select(root, Path(self.manifest))
        classes = sorted({label for _, label, _ in names})
        files = [VideoFile(path, classes.index(label)) for path, label, chosen in names if chosen]
        return FileSource(root, files, classes, clip=clip, strict=strict)

    def _scan(self, root: Path) -> list[tuple[str, str, bool]]:
        paths = [p.relative_to(root) for p in sorted(root.rglob("*")) if p.suffix.lower() in EXTENSIONS]
        loose = [path for path in paths if len(path.parts) == 1]
        if loose and len(loose) < len(paths):
            raise ValueError(f"{root} mixes files ({loose[0]}) and class folders; move the files into a class folder")
        labels = [root.name if loose else path.parts[0] for path in paths]
        counts, seen = Counter(labels), Counter[str]()
        names = []
        for path, label in zip(paths, labels, strict=True):
            seen[label] += 1
            apart = seen[label] > counts[label] - max(1, counts[label] // 8)
            names.append((str(path), label, self.held_out in (None, apart)))
        return names

    def _select(self, root: Path, manifest: Path) -> list[tuple[str, str, bool]]:
        if not manifest.is_file():
            raise ValueError(f"no manifest {manifest}")
        with manifest.open(newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if manifest.suffix == ".tsv" else ",")
            lacking = {"file", "split", "label"} - set(reader.fieldnames or ())
            if lacking:
                raise ValueError(f"{manifest} lacks the column {', '.join(sorted(lacking))}")
            rows = [row for row in reader if Path(row["file"]).suffix.lower() in EXTENSIONS]
        names, splits = [], set()
        for row in rows:
            file = (manifest.parent / row["file"]).absolute()
            if file.is_relative_to(root.absolute()):
                path = str(file.relative_to(root.absolute()))
                path = find_video(root, path) or path
                names.append((path, row["label"] or "unlabelled", self.split in (None, row["split"])))
                splits.add(row["split"])
        if names and not any(chosen for _, _, chosen in names):
            raise ValueError(f"{manifest} has no split '{self.split}' under {root}; it has {', '.join(sorted(splits))}")
        return names


def find_video(root: Path, path: str) -> str | None:
    """A listed path below `root`, or that of the prepared video that stands for it; None where neither is there."""
    candidates = (path, str(Path(path).with_suffix(SUFFIX)))
    return next((candidate for candidate in candidates if (root / candidate).exists()), None)


def existing_folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise ValueError(f"no folder {path}")
    return Path(path)


def _window_starts(info: VideoInfo, clip: ClipConfig) -> list[int | None]:
    """Start of each item that a file gives; None where the clip's seed decides."""
    if clip.window == "random":
        return [None]
    return [*range(0, info.frames - clip.span + 1, clip.span)] if clip.window == "all" else [0]


def _report(problems: list[str], *, total: int, strict: bool) -> None:
    named = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
    message = f"{len(problems)} of {total} video files cannot be used: {named}"
    if strict or len(problems) == total:
        raise ValueError(message)
    logger.warning("%s. They are left out", message)
