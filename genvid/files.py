"""Files that are either complete or absent: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_STALE_SECONDS = 24 * 3600.0
"""Age without a change at which a temporary file or folder counts as left by a killed process."""


@contextmanager
def write_atomically(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes `target` (file or folder), on any error it is removed.

    IsADirectoryError where a file would replace a folder and all that is in it.
    """
    target = Path(target)
    if target.is_dir():
        target = target.resolve()  # a link stays one, and its folder is replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target.parent)
    temporary = temporary_path(target)
    try:
        yield temporary
        if target.is_dir():
            if not temporary.is_dir():
                raise IsADirectoryError(f"{target} is a folder: give the name of a file in its place")
            # A folder cannot be replaced in one step: move the old one aside first.
            old = temporary.with_suffix(".old")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.replace(target)
    finally:
        _remove(temporary)


def temporary_path(target: Path) -> Path:
    """A hidden, unique name beside `target`."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")


@functools.cache
def _remove_stale(folder: Path) -> None:
    """Remove the files of killed processes from a folder; once per process and folder, because listing takes time."""
    for path in folder.iterdir():
        with suppress(OSError):  # another process removes it at this moment
            if _TEMPORARY.fullmatch(path.name) and time.time() - _last_change(path) > _STALE_SECONDS:
                _remove(path)


def _last_change(path: Path) -> float:
    parts = [path, *path.rglob("*")] if path.is_dir() else [path]
    return max(float(part.lstat().st_mtime) for part in parts)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(target: str | Path, text: str) -> None:
    with write_atomically(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: str | Path, data: object) -> None:
    """Indented, for people to read."""
    write_text(target, json.dumps(data, indent=2) + "\n")


def save_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, not atomically, with the permissions of any new file.

    safetensors 0.8 writes files that their owner alone may read.
    """
    import safetensors.torch  # imports torch, which `genvid --help` does without

    file.touch()
    mode = file.stat().st_mode
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(whole, file, metadata)
    file.chmod(mode)


def sha256(*files: str | Path) -> str:
    """Hex digest of a file, or of the names and contents of several."""
    digest = hashlib.sha256()
    for file in map(Path, files):
        if len(files) > 1:
            digest.update(os.fsencode(file.name))
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def json_digest(value: object) -> str:
    """Hex SHA-256 of a value, written as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def readable(name: str | os.PathLike[str]) -> str:
    """A file name as text that can be written anywhere: bytes that are not UTF-8 are escaped (`caf\\xe9.mp4`)."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
