"""Probe many files once: what was found is kept in the user's cache folder, by path, size and time of change."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from genvid.data.video import VideoError, VideoInfo, probe
from genvid.files import write_atomically

logger = logging.getLogger(__name__)


def probe_files(root: Path, files: Sequence[Path]) -> list[VideoInfo | VideoError]:
    """What each file holds, or why it cannot be used. The first call decodes every file, in threads.

    Only what is good is remembered: a file that failed, perhaps for a moment, is tried again.
    """
    memory = _memory(root)
    found: dict[str, VideoInfo | VideoError] = dict(_read(memory))
    keys = [_key(file) for file in files]
    missing = {key: file for key, file in zip(keys, files, strict=True) if key not in found}
    if missing:
        logger.info("probing %d video files under %s", len(missing), root)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            found.update(zip(missing, pool.map(_probe, missing.values()), strict=True))
        _write(memory, {key: info for key, info in found.items() if isinstance(info, VideoInfo)})
    return [found[key] for key in keys]


def _probe(file: Path) -> VideoInfo | VideoError:
    try:
        return probe(file)
    except VideoError as error:
        return error


def _key(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        return f"{file.absolute()}|absent"
    return f"{file.absolute()}|{status.st_size}|{status.st_mtime_ns}"


def _memory(root: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "genvid" / "probe" / f"{hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:16]}.json"


def _read(memory: Path) -> dict[str, VideoInfo]:
    try:
        return {key: VideoInfo(**fields) for key, fields in json.loads(memory.read_text()).items()}
    except (OSError, ValueError, TypeError):
        return {}


def _write(memory: Path, known: dict[str, VideoInfo]) -> None:
    try:
        with write_atomically(memory) as temporary:
            temporary.write_text(json.dumps({key: dataclasses.asdict(info) for key, info in known.items()}))
    except OSError as error:
        logger.info("what was found in the video files is not remembered: %s", error)
