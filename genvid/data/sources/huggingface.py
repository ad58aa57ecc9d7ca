"""Any Hugging Face data set with a Video column, map-style or streamed, local or from the Hub.

Rows are read once. Their videos are kept below the cache folder under the hash of their content (a file that is there
already is linked, not copied), so every later step reads exact frames from files, as for any other source.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genvid.data.clips import ClipConfig
from genvid.data.sources.base import SourceConfig
from genvid.data.sources.files import FileSource, VideoFile
from genvid.data.sources.video_index import cache_folder, one_at_a_time
from genvid.files import json_digest, sha256, write_atomically, write_text


@SourceConfig.register_subclass("huggingface")
@dataclass(frozen=True)
class HuggingFaceConfig(SourceConfig):
    """Arguments of `datasets.load_dataset`, and the columns of the video and of its class."""

    path: str
    """Id on the Hub, or a format: videofolder, parquet, webdataset."""
    name: str | None = None
    split: str = "train"
    data_dir: str | None = None
    data_files: str | None = None
    revision: str | None = None
    column: str = "video"
    label: str | None = "label"
    """None: one class."""
    streaming: bool = False
    """Read rows from the network one after another instead of fetching the whole data set first."""
    limit: int | None = None
    """Only so many rows."""

    def split_name(self) -> str:
        return self.split

    def open(self, clip: ClipConfig, *, strict: bool = False) -> FileSource:
        import datasets

        data = datasets.load_dataset(
            self.path,
            self.name,
            split=self.split,
            data_dir=self.data_dir,
            data_files=self.data_files,
            revision=self.revision,
            streaming=self.streaming,
        )
        columns = list(data.features or {})
        for column in (self.column, self.label):
            if column is not None and columns and column not in columns:
                raise ValueError(f"{self.path} has no column '{column}'; it has {', '.join(columns)}")
        names = getattr((data.features or {}).get(self.label), "names", None)
        # Video(decode=False) gives the file as it is: PyAV reads it, and torchcodec is not needed.
        data = data.cast_column(self.column, datasets.Video(decode=False))
        root = cache_folder() / "videos"
        index = self._open_index(root, data, names, fixed="" if self.streaming else str(data._fingerprint))
        classes = names or sorted({str(label) for _, label in index})
        numbers = {name: number for number, name in enumerate(classes)}
        files = [VideoFile(path, label if names else numbers[str(label)]) for path, label in index]
        return FileSource(root, files, list(classes), clip=clip, strict=strict, split=self.split_name())

    def _open_index(
        self, root: Path, data: Iterable[dict[str, Any]], classes: list[str] | None, fixed: str
    ) -> list[tuple[str, Any]]:
        """Kept file and label of each row, remembered: the second time nothing is read."""
        key = json_digest([asdict(self), fixed])[:16]
        memory = root / f"{key}.json"
        with one_at_a_time(memory, f"the rows of {self.path}"):
            index = [(path, label) for path, label in json.loads(memory.read_text())] if memory.is_file() else []
            for number, (_, label) in enumerate(index):
                self._check_label(number, label, classes)
            if not index or not all((root / path).exists() for path, _ in index):
                index = list(self._keep_rows(root, data, classes))
                write_text(memory, json.dumps(index))
        return index

    def _keep_rows(
        self, root: Path, data: Iterable[dict[str, Any]], classes: list[str] | None
    ) -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(itertools.islice(data, self.limit)):
            label = row[self.label] if self.label else self.path
            self._check_label(number, label, classes)
            if row[self.column] is None:
                raise ValueError(f"row {number} of {self.path} ({self.split}) has no video in column {self.column}")
            yield _keep(root, row[self.column]), label

    def _check_label(self, number: int, label: Any, classes: list[str] | None) -> None:
        """ValueError unless `label` is a class: an index of `classes` where they are named, else text or a number."""
        if classes:
            known, wanted = isinstance(label, int) and 0 <= label < len(classes), f"0 to {len(classes) - 1}"
        else:
            known, wanted = label not in (None, "", -1) and label == label, "present, and not -1"
        if not known:
            raise ValueError(
                f"row {number} of {self.path} ({self.split}) has the label {label!r}, but labels must be {wanted}; "
                "choose a split with labels, or label: null for one class"
            )


def _keep(root: Path, value: Any) -> str:
    """A row's video, {path, bytes} -> its path below `root`."""
    content, source = value["bytes"], value["path"]
    digest = hashlib.sha256(content).hexdigest() if content else sha256(source)
    kept = Path(digest[:2]) / f"{digest}{Path(source or '').suffix or '.mp4'}"
    if not (root / kept).exists():
        with write_atomically(root / kept) as temporary:
            if content:
                temporary.write_bytes(content)
            else:
                temporary.symlink_to(Path(source).absolute())
    return str(kept)
