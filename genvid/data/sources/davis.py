"""Sequences as folders of pictures: DAVIS, and whatever is laid out like it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genvid.data.clips import ClipConfig
from genvid.data.sources.base import ALL, SourceConfig
from genvid.data.sources.files import FileSource, VideoFile, existing_folder
from genvid.data.sources.listing import find_video, find_videos
from genvid.data.sources.tables import read_lines
from genvid.files import readable


@SourceConfig.register_subclass("davis")
@dataclass(frozen=True)
class DavisConfig(SourceConfig):
    """Folders of pictures below `path` (JPEGImages/480p), each a video; one class.

    `names` is a list of them, one a line (ImageSets/2017/val.txt); None takes all.
    """

    path: str
    names: str | None = None

    def split_name(self) -> str:
        return ALL if self.names is None else Path(self.names).stem

    def open(self, clip: ClipConfig, *, strict: bool = False) -> FileSource:
        root = existing_folder(self.path)
        if self.names is None:
            wanted = [path for path in find_videos(root)[0] if "/" not in path]
        elif Path(self.names).is_file():
            wanted = sorted(line for _, line in read_lines(Path(self.names)))
        else:
            raise ValueError(f"no list {self.names}; names is a file like ImageSets/2017/val.txt, one sequence a line")
        if not wanted:
            raise ValueError(f"no folders of pictures in {root}; path is like DAVIS/JPEGImages/480p")
        there = {name: path for name in wanted if (path := find_video(root, name)) is not None}
        missing = [f"{root / name} is listed but is not there" for name in wanted if name not in there]
        files = [VideoFile(path, 0) for path in there.values()]
        name = readable(root.absolute().name)
        return FileSource(root, files, [name], clip=clip, strict=strict, missing=missing, split=self.split_name())
