"""UCF-101 as it is distributed, with its official lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genvid.data.clips import ClipConfig
from genvid.data.sources.base import SourceConfig
from genvid.data.sources.files import FileSource, VideoFile, existing_folder
from genvid.data.sources.listing import find_video
from genvid.data.sources.tables import read_lines


@SourceConfig.register_subclass("ucf101")
@dataclass(frozen=True)
class Ucf101Config(SourceConfig):
    """UCF-101: class folders of .avi below `path`, and the official lists in `split_lists`. Files come in the order of
    their paths, as LARP's protocol draws from them."""

    path: str
    split_lists: str
    """The folder ucfTrainTestlist."""
    split: Literal["train", "test", "train+test"] = "train"
    fold: int = 1
    class_order: Literal["official", "ascii"] = "official"
    """How classes are numbered: by classInd.txt, or in the byte order of their names in the files, as the published
    LARP and AdapTok models number them. The two differ: HammerThrow before Hammering, JumpRope before JumpingJack."""

    def __post_init__(self) -> None:
        if self.fold not in (1, 2, 3):
            raise ValueError(f"UCF-101 has folds 1, 2 and 3, got {self.fold}")

    def split_name(self) -> str:
        return f"{self.split}, fold {self.fold}"

    def open(self, clip: ClipConfig, *, strict: bool = False) -> FileSource:
        root, lists = existing_folder(self.path), existing_folder(self.split_lists)
        numbers = {}
        for place, words in _lines(lists / "classInd.txt"):
            if len(words) != 2 or not words[0].isdigit():
                raise ValueError(f"{place}: expected a class number and a name, got '{' '.join(words)}'")
            numbers[words[1]] = int(words[0])
        names = self._files(lists, numbers)
        there = {path: file for path in sorted(names) if (file := find_video(root, path)) is not None}
        missing = [f"{root / path} is listed but is not there" for path in sorted(names) if path not in there]
        order = sorted(numbers, key=lambda name: numbers[name])
        if self.class_order == "ascii":
            # The class as it is spelled in file names: HandStandPushups, where its folder is HandstandPushups.
            spelled = {name: Path(path).stem.split("_")[1] for path, name in names.items() if "_" in path}
            order = sorted(numbers, key=lambda name: spelled.get(name, name))
        files = [VideoFile(file, order.index(names[path])) for path, file in there.items()]
        return FileSource(root, files, order, clip=clip, strict=strict, missing=missing, split=self.split_name())

    def _files(self, lists: Path, numbers: dict[str, int]) -> dict[str, str]:
        """Path of every file of the split -> its class."""
        names = {}
        for split in self.split.split("+"):
            for place, words in _lines(lists / f"{split}list{self.fold:02d}.txt"):
                name = words[0].split("/")[0]
                if name not in numbers:
                    raise ValueError(f"{place}: class '{name}' is not in {lists / 'classInd.txt'}")
                if words[1:] and words[1:] != [str(numbers[name])]:
                    raise ValueError(f"{place}: label {' '.join(words[1:])} is not that of {name}, {numbers[name]}")
                names[words[0]] = name
        return names


def _lines(file: Path) -> list[tuple[str, list[str]]]:
    """Words of each line that has any, with the line's place for error messages."""
    if not file.is_file():
        raise ValueError(f"no list {file}; split_lists is the folder ucfTrainTestlist of UCF-101")
    return [(place, line.split()) for place, line in read_lines(file)]
