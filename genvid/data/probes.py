"""Probe many files once: what was found, and a hash of their content, is kept in the user's cache folder.

A file is known again by path, size and time of change; what is computed from files is known by their content. Prepared
videos come with an index of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from genvid.data.prepared import IndexedVideo, PreparedVideo
from genvid.data.video import VideoError, VideoInfo, probe
from genvid.files import sha256, write_atomically

logger = logging.getLogger(__name__)

_VERSION = 2
"""Of the memory. It rises when a probe finds other values in the same file: 2 has sizes as shown, and seek points."""


def cache_folder() -> Path:
    """Where genvid keeps what can be computed again: below XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genvid"


def probe_files(
    root: Path, files: Sequence[Path], prepared: Mapping[str, PreparedVideo]
) -> list[IndexedVideo | VideoError]:
    """What each file holds, or why it cannot be used. The first call decodes every file that is not among the
    `prepared` ones below `root`, in threads.

    Only what is good is remembered: a file that failed, perhaps for a moment, is tried again.
    """
    memory = _memory(root)
    found: dict[str, IndexedVideo | VideoError] = dict(_read(memory))
    keys = [_key(file) for file in files]
    for key, file in zip(keys, files, strict=True):
        entry = prepared.get(file.relative_to(root).as_posix())
        if entry is not None and file.is_file() and file.stat().st_size == entry.bytes:
            found[key] = entry.video
    missing = {key: file for key, file in zip(keys, files, strict=True) if key not in found}
    if missing:
        logger.info("probing %d video files under %s", len(missing), root)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            found.update(zip(missing, pool.map(_probe, missing.values()), strict=True))
        _write(memory, {key: video for key, video in found.items() if isinstance(video, IndexedVideo)})
    return [found[key] for key in keys]


def _probe(file: Path) -> IndexedVideo | VideoError:
    try:
        return IndexedVideo(probe(file), sha256(file)[:16])
    except VideoError as error:
        return error


def _key(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        return f"{file.absolute()}|absent"
    return f"{file.absolute()}|{status.st_size}|{status.st_mtime_ns}"


def _memory(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
    return cache_folder() / "probe" / f"{name}.json"


def _read(memory: Path) -> dict[str, IndexedVideo]:
    try:
        known = json.loads(memory.read_text())
        rows = known["videos"] if known["version"] == _VERSION else {}
        return {key: IndexedVideo(VideoInfo.from_row(row["info"]), row["digest"]) for key, row in rows.items()}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _write(memory: Path, known: dict[str, IndexedVideo]) -> None:
    try:
        with write_atomically(memory) as temporary:
            videos = {key: dataclasses.asdict(video) for key, video in known.items()}
            temporary.write_text(json.dumps({"version": _VERSION, "videos": videos}))
    except OSError as error:
        logger.info("what was found in the video files is not remembered: %s", error)
