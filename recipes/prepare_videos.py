"""Resize videos once, before training: python recipes/prepare_videos.py CONFIG.yaml [--key value ...]

Writes a folder for `data.source.path` in place of the original one. Finished files are kept: the same command goes on
after an interruption. --part 3 --parts 8 makes an eighth of the files, on one machine of eight.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from genvid import config as configuration
from genvid.command import command
from genvid.data.dataset import VideoData
from genvid.data.sources.files import FileSource
from genvid.data.sources.listing import prepared_path
from genvid.data.sources.prepared import (
    Preparation,
    PreparedVideo,
    index_file,
    prepare_video,
    read_index,
    write_index,
    write_originals,
)
from genvid.data.video import VideoError, VideoInfo
from genvid.files import readable, write_text

logger = logging.getLogger(__name__)

WRITE_EVERY = 500
"""Most videos that are prepared again after the process was killed; after Ctrl+C only those under way are."""


@dataclass(frozen=True, kw_only=True)
class PreparationRun:
    """Videos of a source, how they are compressed, and their folder."""

    output_dir: str
    data: VideoData
    """Source, and resolution and crop of `clip`; videos with fewer frames than `clip.frames` are left out."""
    quality: int = Preparation.quality
    keyframe_every: int = Preparation.keyframe_every
    workers: int = 8
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        configuration.check_counts(self, "workers")
        if not 0 <= self.part < self.parts:
            raise ValueError(f"part is 0 to parts - 1, got part {self.part} of {self.parts}")


def prepare_videos(run: PreparationRun) -> tuple[dict[str, PreparedVideo], dict[str, str]]:
    """Prepared videos by path, and the problems of all others by path."""
    how = Preparation(run.data.clip, run.quality, run.keyframe_every)
    root, index = Path(run.output_dir), index_file(Path(run.output_dir), run.part, run.parts)
    source = run.data.source.open(run.data.clip, strict=run.data.strict)
    if not isinstance(source, FileSource):
        raise ValueError(f"only videos in files can be prepared, and {type(run.data.source).__name__} has none")
    if root.resolve().is_relative_to(source.root.resolve()):
        raise ValueError(f"output_dir {root} is within {source.root}, whose videos are prepared: choose another folder")
    videos = _targets(source.listing(), run.part, run.parts)
    done: dict[str, PreparedVideo] = {}
    if index.is_file():
        held, done = read_index(index)
        if held != how.described():
            raise ValueError(f"{root} was prepared as {held}, not as {how.described()}: choose another output_dir")
        digests = {target: source.digests[path] for target, (path, _) in videos.items()}
        done = {path: video for path, video in done.items() if _is_good(root / path, video, digests.get(path, ""))}
    write_originals(root, source.root)
    missing = {target: video for target, video in videos.items() if target not in done}
    problems = {}
    try:
        for target, result in _prepare(source.root, root, missing, how, run.workers):
            if isinstance(result, PreparedVideo):
                done[target] = dataclasses.replace(result, source=source.digests[missing[target][0]])
                if len(done) % WRITE_EVERY == 0:
                    write_index(index, how.described(), done)
            else:
                problems[missing[target][0]] = readable(str(result))
                logger.warning("%s. It is left out (%d so far)", result, len(problems))
    finally:
        write_index(index, how.described(), done)
    found = (*source.left_out, *problems.values())
    write_text(index.with_suffix(".problems.txt"), "".join(f"{line}\n" for line in found))
    return done, problems


def _targets(listing: dict[str, VideoInfo], part: int, parts: int) -> dict[str, tuple[str, VideoInfo]]:
    """Videos of this part: path of the prepared video -> path and properties of its source."""
    targets: dict[str, tuple[str, VideoInfo]] = {}
    for path, info in sorted(listing.items()):
        target = prepared_path(path)
        if target in targets:
            raise ValueError(readable(f"{path} and {targets[target][0]} would both become {target}: rename one"))
        targets[target] = path, info
    return dict(list(targets.items())[part::parts])


def _is_good(file: Path, video: PreparedVideo, source: str) -> bool:
    """Whether a prepared file is complete, and made from the video of digest `source`, if both digests are known."""
    complete = file.is_file() and file.stat().st_size == video.bytes
    return complete and ("" in (video.source, source) or video.source == source)


def _prepare(
    source: Path, root: Path, videos: dict[str, tuple[str, VideoInfo]], how: Preparation, workers: int
) -> Iterator[tuple[str, PreparedVideo | VideoError]]:
    """Every video when it is finished: its path, and the prepared video or the error."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["genvid.data"])
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {
            pool.submit(prepare_video, source / path, info, root / target, how): target
            for target, (path, info) in videos.items()
        }
        try:
            for future in tqdm(as_completed(running), total=len(running), desc="preparing", unit="video"):
                try:
                    yield running[future], future.result()
                except VideoError as error:
                    yield running[future], error
        finally:
            pool.shutdown(cancel_futures=True)  # a full disk ends the command before the other videos, not after them


@command
def main(argv: Sequence[str]) -> None:
    usage = "python recipes/prepare_videos.py CONFIG.yaml [--key value ...]"
    run = configuration.parse(PreparationRun, argv, usage=usage)
    done, problems = prepare_videos(run)
    frames, size = sum(v.video.info.frames for v in done.values()), sum(v.bytes for v in done.values())
    print(
        f"prepared {len(done)} videos, {frames} frames, {size / 1e9:.3f} GB in {run.output_dir}; {len(problems)} failed"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
