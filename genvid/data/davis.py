"""Sequences as folders of pictures: DAVIS, and whatever is laid out like it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genvid.data.clips import ClipConfig
from genvid.data.folders import FileSource, VideoFile, existing_folder
from genvid.data.images import list_images
from genvid.data.source import SourceConfig


@SourceConfig.register_subclass("davis")
@dataclass(frozen=True)
class DavisConfig(SourceConfig):
    """Folders of pictures below `path` (JPEGImages/480p), each a video; one class.

    `names` is a list of them, one a line (ImageSets/2017/val.txt); None takes all.
    """

    path: str
    names: str | None = None

    def open(self, clip: ClipConfig, *, strict: bool = False) -> FileSource:
        root = existing_folder(self.path)
        if self.names is None:
            wanted = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and list_images(folder))
        elif Path(self.names).is_file():
            wanted = sorted(line.strip() for line in Path(self.names).read_text().splitlines() if line.strip())
        else:
            raise ValueError(f"no list {self.names}; names is a file like ImageSets/2017/val.txt, one sequence a line")
        if not wanted:
            raise ValueError(f"no folders of pictures in {root}; path is like DAVIS/JPEGImages/480p")
        missing = [f"{root / name} is listed but is not there" for name in wanted if not (root / name).is_dir()]
        files = [VideoFile(name, 0) for name in wanted if (root / name).is_dir()]
        return FileSource(root, files, [root.name], clip=clip, strict=strict, missing=missing)
