"""Videos that were resized once, so that every later read is cheap: small H.264 files with a keyframe every few frames.

A prepared folder keeps the paths of the folder it was made of, as .mp4; frame i of a file is frame i of its video, so
clip rules mean the same on both. `index-*.json` hold the settings of the preparation and the properties of each file:
opening the folder decodes nothing. `originals.json` lists the videos of that folder, also those that could not be
prepared: splits and classes are those of the originals.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.error import FFmpegError

from genvid.data.clips import ClipConfig
from genvid.data.encoding import REPEATABLE, ImageEncoder
from genvid.data.sources.listing import find_videos
from genvid.data.video import Frames, VideoError, VideoInfo, frame_rate, iterate_frames, probe
from genvid.files import sha256, write_atomically, write_text

_VERSION = 2
"""Version of the prepared files: from 2 on frames are as a player shows them, upright and with square pixels."""
_ORIGINALS, _INDICES = "originals.json", "index-*-of-*.json"
_CHUNK = 32
"""Frames that are in memory at a time."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How videos are prepared."""

    clip: ClipConfig
    """Its resolution, and its crop: a centre crop is made now; for random ones the whole picture is kept."""
    quality: int = 12
    """x264's constant rate factor, without subsampled colours; 0 is lossless. docs/training.md has what 12 costs."""
    keyframe_every: int = 8
    """To read a clip, at most so many frames before it are decoded."""

    def __post_init__(self) -> None:
        if not 0 <= self.quality <= 51 or self.keyframe_every < 1:
            raise ValueError(
                f"quality is 0 (lossless) to 51 and keyframe_every at least 1, got {self.quality} and "
                f"{self.keyframe_every}"
            )
        height, width = self.clip.resolution
        if self.clip.zoom > 1 or (self.clip.turn and height != width):
            raise ValueError(
                "prepared videos have no more pixels than clips without zoom or turn need: for data.clip.zoom above 1, "
                "and data.clip.turn of frames that are not square, use the originals"
            )

    def described(self) -> dict[str, Any]:
        """Everything that the prepared files depend on."""
        rule = {"resolution": list(self.clip.resolution), "crop": self.clip.crop}
        return {"version": _VERSION, **rule, "quality": self.quality, "keyframe_every": self.keyframe_every}


@dataclasses.dataclass(frozen=True, slots=True)
class IndexedVideo:
    """Properties of a file, and the start of the SHA-256 of its content."""

    info: VideoInfo
    digest: str


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedVideo:
    """An entry of an index."""

    video: IndexedVideo
    bytes: int
    source: str = ""
    """Digest of the video that it was made from; empty where that was not recorded."""


def prepare_video(source: Path, info: VideoInfo, target: Path, how: Preparation) -> PreparedVideo:
    """Write `target` whole or not at all.

    VideoError when the source cannot be decoded to its last frame, another ValueError when `target` cannot be written.
    """
    with write_atomically(target) as temporary:
        _encode(temporary, _resized(source, info, how.clip), info.fps, how)
        copy = probe(temporary)
        regular = copy.pts_step is not None or copy.frames == 1
        if copy.frames != info.frames or not regular:
            raise VideoError(f"{source} has {info.frames} frames, but {copy.frames} could be prepared")
        return PreparedVideo(IndexedVideo(copy, sha256(temporary)[:16]), temporary.stat().st_size)


def index_file(root: Path, part: int, parts: int) -> Path:
    """Each machine that prepares a part of the videos has an index of its own."""
    return root / f"index-{part:05d}-of-{parts:05d}.json"


def write_index(file: Path, how: dict[str, Any], videos: dict[str, PreparedVideo]) -> None:
    rows = {path: dataclasses.asdict(video) for path, video in sorted(videos.items())}
    write_text(file, json.dumps({"how": how, "videos": rows}))


def read_index(file: Path) -> tuple[dict[str, Any], dict[str, PreparedVideo]]:
    """How the videos were prepared, and they by path. ValueError when the file is damaged."""
    try:
        data = json.loads(file.read_text())
        videos = {
            path: PreparedVideo(
                IndexedVideo(VideoInfo.from_row(row["video"]["info"]), row["video"]["digest"]),
                row["bytes"],
                row.get("source", ""),
            )
            for path, row in data["videos"].items()
        }
        return data["how"], videos
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it and prepare the videos again") from None


def write_originals(root: Path, source: Path) -> None:
    """List the videos of the folder `source`, of which `root` is prepared."""
    originals = read_originals(source) or find_videos(source)[0]
    write_text(root / _ORIGINALS, json.dumps(originals))


def read_originals(root: Path, *, required: bool = False) -> list[str] | None:
    """Paths of the videos of which a folder was prepared, in their order; None in other folders.

    ValueError where the list of a prepared folder is `required` and absent, or damaged.
    """
    file = root / _ORIGINALS
    if required and not file.is_file() and any(root.glob(_INDICES)):
        raise ValueError(
            f"{root} was prepared by an earlier version of genvid, which did not list its originals, and held_out "
            "splits these: run prepare_videos.py again, which keeps the finished files"
        )
    try:
        originals: list[str] | None = json.loads(file.read_text()) if file.is_file() else None
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): run prepare_videos.py again, which writes it anew") from None
    return originals


def read_prepared(root: Path, clip: ClipConfig) -> dict[str, PreparedVideo]:
    """The prepared videos below `root` by path; none in other folders. ValueError when they do not serve this clip."""
    videos: dict[str, PreparedVideo] = {}
    for file in sorted(root.glob(_INDICES)):
        how, found = read_index(file)
        wanted = Preparation(clip).described()
        if how.get("version") != wanted["version"]:
            raise ValueError(
                f"{root} was prepared by another version of genvid (earlier ones left turned videos on their side): "
                "prepare the videos anew in another folder, or use the originals"
            )
        if how["resolution"] != wanted["resolution"] or how["crop"] not in (wanted["crop"], "random"):
            raise ValueError(
                f"{root} was prepared for {how['crop']} crops at {how['resolution']}, but these clips have "
                f"{wanted['crop']} crops at {wanted['resolution']}: prepare the videos anew, or use the originals"
            )
        videos |= found
    return videos


def _resized(source: Path, info: VideoInfo, clip: ClipConfig) -> Iterator[Frames]:
    """(H, W, 3) frames as a clip would have them."""
    rule = ClipConfig(resolution=clip.resolution, crop=clip.crop)
    frames = iterate_frames(source, info)
    while chunk := list(islice(frames, _CHUNK)):
        video = torch.from_numpy(np.stack(chunk))
        fitted = rule.fit(video, 0) if rule.crop == "center" else rule.cover(video.permute(0, 3, 1, 2)).transpose(0, 1)
        yield from np.ascontiguousarray(fitted.permute(1, 2, 3, 0).numpy())


def _encode(path: Path, frames: Iterable[Frames], fps: float, how: Preparation) -> None:
    """Constant frame rate, no frame that depends on a later one, and no coding tool that slows decoding down."""
    options = REPEATABLE | {"crf": str(how.quality), "tune": "fastdecode", "g": str(how.keyframe_every)}
    options |= {"bf": "0", "sc_threshold": "0"}
    try:
        with av.open(str(path), "w", format="mp4") as container:
            stream: Any = container.add_stream("libx264", frame_rate(fps), options=options)
            stream.pix_fmt = "yuv444p"
            encode = ImageEncoder(stream)
            for image in frames:
                container.mux(encode(image))
            container.mux(stream.encode())
    except FFmpegError as error:
        # No fault of the video: a full or unwritable disk ends the whole preparation.
        raise ValueError(f"{path} cannot be written ({error.strerror or error})") from None
