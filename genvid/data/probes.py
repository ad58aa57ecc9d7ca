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
from typing import Any

from genvid.data.video import VideoError, VideoInfo, probe
from genvid.files import write_atomically

logger = logging.getLogger(__name__)


def probe_files(root: Path, files: Sequence[Path]) -> list[VideoInfo | VideoError]:
    """What each file holds, or why it cannot be used. The first call decodes every file, in threads."""
    memory = _cache_file(root)
    known = _read(memory)
    keys = [_key(file) for file in files]
    missing = [(key, file) for key, file in zip(keys, files, strict=True) if key not in known]
    if missing:
        logger.info("probing %d video files under %s (once)", len(missing), root)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            entries = list(pool.map(_probe, [file for _, file in missing]))
        known |= {key: entry for (key, _), entry in zip(missing, entries, strict=True)}
        _write(memory, known)
    return [_result(known[key]) for key in keys]


def _probe(file: Path) -> dict[str, Any]:
    try:
        return dataclasses.asdict(probe(file))
    except VideoError as error:
        return {"error": str(error)}


def _result(entry: dict[str, Any]) -> VideoInfo | VideoError:
    return VideoError(entry["error"]) if "error" in entry else VideoInfo(**entry)


def _key(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        return f"{file.absolute()}|absent"
    return f"{file.absolute()}|{status.st_size}|{status.st_mtime_ns}"


def _cache_file(root: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "genvid" / "probe" / f"{hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:16]}.json"


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        known: dict[str, dict[str, Any]] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return known


def _write(file: Path, known: dict[str, dict[str, Any]]) -> None:
    kept = {key: entry for key, entry in known.items() if not key.endswith("|absent")}
    try:
        with write_atomically(file) as temporary:
            temporary.write_text(json.dumps(kept))
    except OSError as error:
        logger.info("what was found in the video files is not remembered: %s", error)
