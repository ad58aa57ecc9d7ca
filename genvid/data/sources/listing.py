"""Which files and folders below a folder are videos."""

from __future__ import annotations

import os
from pathlib import Path

from genvid.data.images import IMAGES
from genvid.files import readable

EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
PREPARED = ".mp4"
"""Suffix of prepared videos (genvid.data.sources.prepared)."""

_SYSTEM = {
    *("__MACOSX", "__pycache__", "@eaDir", "@Recycle", "@Recently-Snapshot", "@__thumb", "#recycle", "#snapshot"),
    *("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "lost+found"),
}
"""Folders that systems, network drives and archives add."""

Inode = tuple[int, int]
"""Device and number of a folder: the same by whatever link it is reached."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's own: .ipynb_checkpoints, .Trash-1000, ._a.mp4, __MACOSX, ..."""
    return name.startswith(".") or name in _SYSTEM


def find_videos(root: Path) -> tuple[list[str], list[str]]:
    """Paths of the videos below `root` in their order, and one sentence for each part that could not be searched.

    A video is a file with one of `EXTENSIONS`, or a folder that holds pictures and, at whatever depth, no video.
    Links are followed, except to a folder that contains them. Hidden names do not count.
    """
    found: list[str] = []
    problems: list[str] = []
    _search(root, "", (), found, problems)
    return sorted(found, key=lambda path: Path(path).parts), problems


def _search(folder: Path, prefix: str, above: tuple[Inode, ...], found: list[str], problems: list[str]) -> None:
    """Add the videos of a folder to `found`, as paths that begin with `prefix`."""
    try:
        inode, entries = _inode(folder), list(os.scandir(folder))
    except OSError as error:
        problems.append(f"{readable(folder)} cannot be listed ({error.strerror})")
        return
    if inode in above:
        return
    before, pictures = len(found), False
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            _search(folder / entry.name, f"{prefix}{entry.name}/", (*above, inode), found, problems)
        elif suffix in EXTENSIONS:
            found.append(f"{prefix}{entry.name}")
        elif suffix in IMAGES:
            pictures = True
        elif entry.is_symlink() and not os.path.exists(entry.path):
            problems.append(f"{readable(entry.path)} is a link to {readable(os.readlink(entry.path))}, which is absent")
    if prefix and pictures and len(found) == before:
        found.append(prefix.removesuffix("/"))


def _inode(folder: Path) -> Inode:
    status = folder.stat()
    return status.st_dev, status.st_ino


def prepared_path(path: str) -> str:
    """Where a prepared folder keeps a video: `a/b.avi` as `a/b.mp4`, the folder of pictures `a/c.1` as `a/c.1.mp4`."""
    stem, suffix = os.path.splitext(path)
    return f"{stem if suffix.lower() in EXTENSIONS else path}{PREPARED}"


def find_video(root: Path, path: str) -> str | None:
    """A listed path below `root`, or the file in its place; None where neither exists.

    That is the prepared video, or the file of a path that is listed without its suffix.
    """
    candidates = (path, prepared_path(path), *(f"{path}{suffix}" for suffix in EXTENSIONS))
    return next((candidate for candidate in candidates if (root / candidate).exists()), None)
