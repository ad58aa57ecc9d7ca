"""Probe many files once: their properties, and a hash of their content, are kept in the user's cache folder.

Files are recognised by path, size and time of change; results computed from files are keyed by their content. Prepared
videos come with an index of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from genvid.data.images import find_images
from genvid.data.sources.prepared import IndexedVideo, PreparedVideo
from genvid.data.video import VideoError, VideoInfo, probe, video_sha256
from genvid.files import readable, write_text

logger = logging.getLogger(__name__)

_VERSION = 3
"""Version of the index. It rises when a probe gives other values for the same file: 2 has sizes as shown, and seek
points; 3 has the last frames of files whose first stream is another one."""
_SAVE_SECONDS = 60.0
"""Longest time between two writes of the index while files are probed."""


def cache_folder() -> Path:
    """Folder of files that can be computed again: below XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genvid"


def probe_files(
    root: Path, files: Sequence[Path], prepared: Mapping[str, PreparedVideo]
) -> list[IndexedVideo | VideoError]:
    """The properties of each file, or the reason why it cannot be used.

    The first call decodes every file that is not among the `prepared` ones below `root`, in the threads of one process;
    others that open the same folder wait for it.

    Only usable files are stored: a file that failed, perhaps temporarily, is probed again.
    """
    memory, keys = _memory(root), [_key(file) for file in files]
    found: dict[str, IndexedVideo | VideoError] = dict(_read(memory))
    for key, file in zip(keys, files, strict=True):
        entry = prepared.get(file.relative_to(root).as_posix())
        if entry is not None and file.is_file() and file.stat().st_size == entry.bytes:
            found[key] = entry.video
    if all(key in found for key in keys):
        return [found[key] for key in keys]
    with one_at_a_time(memory, f"the videos under {readable(root)}") as waited:
        found |= _read(memory)
        if waited:
            found |= _read_failures(memory)
        missing = {key: file for key, file in zip(keys, files, strict=True) if key not in found}
        if missing:
            _probe_all(missing, found, memory)
    return [found[key] for key in keys]


@contextmanager
def one_at_a_time(memory: Path, what: str) -> Iterator[bool]:
    """Let one process at a time, of this host and of others with the same cache folder, fill a file of that folder.
    Yields whether this process has waited for another. Where nothing can be locked, no process waits."""
    file = cache_folder() / "locks" / f"{memory.stem}.lock"
    lock, waited = FileLock(file), False
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waited = True
            logger.info("another process reads %s; waiting for it", what)
            lock.acquire(poll_interval=0.5)
    except (OSError, NotImplementedError) as error:
        logger.info("every process reads %s by itself: %s cannot be locked (%s)", what, file, error)
    try:
        yield waited
    finally:
        lock.release()


def _probe_all(missing: Mapping[str, Path], found: dict[str, IndexedVideo | VideoError], memory: Path) -> None:
    """Probe each missing file into `found`, and store the index, also after an interruption."""
    failures = _failures(memory)
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        with suppress(OSError):
            failures.unlink(missing_ok=True)
        saved = time.monotonic()
        probed = pool.map(_probe, missing.values())
        for key, video in zip(missing, tqdm(probed, "probing", len(missing), unit="video", delay=2.0), strict=True):
            found[key] = video
            if time.monotonic() - saved > _SAVE_SECONDS:
                _write(memory, _good(found))
                saved = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)
        _write(memory, _good(found))
    failed = {key: str(found[key]) for key in missing if isinstance(found[key], VideoError)}
    with suppress(OSError):
        write_text(failures, json.dumps(failed))


def _good(found: Mapping[str, IndexedVideo | VideoError]) -> dict[str, IndexedVideo]:
    return {key: video for key, video in found.items() if isinstance(video, IndexedVideo)}


def _failures(memory: Path) -> Path:
    """Files that the last process could not use, for the processes that waited for it."""
    return cache_folder() / "locks" / f"{memory.stem}.failed.json"


def _read_failures(memory: Path) -> dict[str, VideoError]:
    try:
        return {key: VideoError(message) for key, message in json.loads(_failures(memory).read_text()).items()}
    except (OSError, ValueError):
        return {}


def _probe(file: Path) -> IndexedVideo | VideoError:
    try:
        return IndexedVideo(probe(file), video_sha256(file)[:16])
    except VideoError as error:
        return error


def _key(file: Path) -> str:
    """Path, size and time of change; those of the pictures too where a video is a folder of them."""
    try:
        found = [part.stat() for part in (file, *(find_images(file) if file.is_dir() else ()))]
    except OSError:
        return f"{file.absolute()}|absent"
    size, changed = sum(one.st_size for one in found), max(one.st_mtime_ns for one in found)
    return f"{file.absolute()}|{size}|{changed}"


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
        videos = {key: dataclasses.asdict(video) for key, video in known.items()}
        write_text(memory, json.dumps({"version": _VERSION, "videos": videos}))
    except OSError as error:
        logger.info("the index of probed video files cannot be stored: %s", error)
