"""Video files through PyAV: probe, read frames exactly by index, write.

A frame is named by its position among those that a player shows. Decoding starts at a key frame only where a full
decode has found that frame to need none before it, and its index; elsewhere frames are counted from the start. A folder
of pictures is a video too (genvid.data.images). Frames are converted as a player shows them (genvid.data.frames).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, dropwhile
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from torch import Tensor

from genvid.data.audio import AudioCopy, open_audio
from genvid.data.decoding import Timeline, counted, decode, demux, frames_per_second, open_stream
from genvid.data.encoding import REPEATABLE, ImageEncoder
from genvid.data.frames import FrameConverter
from genvid.data.frames import Frames as Frames
from genvid.data.frames import VideoError as VideoError
from genvid.data.images import find_images, list_images, read_image
from genvid.files import sha256, write_atomically

_POINT_DISTANCE = 16
"""Fewest frames between two seek points that are kept."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Properties of a video file, from decoding all of it."""

    frames: int
    height: int
    width: int
    """Pixels on the screen: upright, and square."""
    fps: float
    first_pts: int
    pts_step: float | None
    """Frame i has the time stamp first_pts + i * pts_step (rounded), and decoding may start at every key frame; None
    in files where one or the other does not hold."""
    seek_points: tuple[tuple[int, int], ...] = ()
    """Where `pts_step` is None: index and time stamp of key frames at which decoding may start."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> VideoInfo:
        """From its fields as read from JSON."""
        points = tuple((index, stamp) for index, stamp in row.get("seek_points", ()))
        return cls(**{**row, "seek_points": points})


def probe(path: str | Path) -> VideoInfo:
    """Decode the whole file once; VideoError when it is no video, is damaged, is cut short or changes its size."""
    if Path(path).is_dir():
        return _probe_images(Path(path))
    stamps: list[int | None] = []
    points: list[tuple[int, int]] = []
    size: tuple[int, int] | None = None
    with open_stream(path) as (container, stream):
        convert, timeline = FrameConverter(path, stream), Timeline(container, stream)
        for index, frame in counted(path, timeline.packets()):
            stamps.append(frame.pts)
            if frame.key_frame and frame.opaque is not None:
                points.append((index, frame.opaque))
            found = convert.size(frame)
            size = size or found
            if found != size:
                raise VideoError(_resized(path, size, found, index))
        if size is None:
            raise VideoError(f"{path} holds no frame that can be decoded")
        frames = len(stamps)
        timeline.check(path, frames)
        if container.format.name == "avi" and stream.codec_context.has_b_frames:
            stamps = []  # they are guesses
        first, step = _timing(stamps) if len(points) == timeline.key_packets else (0, None)
        return VideoInfo(
            frames, *size, frames_per_second(stream, stamps), first, step, () if step else _thinned(points)
        )


def read_clip(path: str | Path, start: int, frames: int, stride: int = 1, *, info: VideoInfo | None = None) -> Frames:
    """Frames start, start + stride, ... of a file, exact by index: (T, H, W, 3) uint8. Pass `info` to save a probe.

    Raises VideoError when the file has too few frames or cannot be decoded.
    """
    info = info or probe(path)
    wanted = range(start, start + frames * stride, stride)
    if start < 0 or wanted[-1] >= info.frames:
        raise VideoError(f"{path} has {info.frames} frames, but frames {start} to {wanted[-1]} were requested")
    if Path(path).is_dir():
        return np.stack(list(_read_images(Path(path), wanted, info)))
    clip = _decode(path, wanted, info, seek=True) if start and (info.pts_step or info.seek_points) else None
    if clip is None:
        clip = _decode(path, wanted, info, seek=False)
    if clip is None:
        raise VideoError(f"{path} ended before frame {wanted[-1]}; it had {info.frames} frames when it was probed")
    return clip


def video_sha256(path: str | Path) -> str:
    """Hex digest of a video file, or of the pictures of a folder, whatever else is in it."""
    return sha256(*sorted(find_images(Path(path)))) if Path(path).is_dir() else sha256(path)


def iterate_frames(path: str | Path, info: VideoInfo) -> Iterator[Frames]:
    """Every frame of a file, (H, W, 3) uint8, one at a time. VideoError when it cannot be decoded."""
    if Path(path).is_dir():
        yield from _read_images(Path(path), range(info.frames), info)
        return
    with open_stream(path) as (container, stream):
        convert = FrameConverter(path, stream)
        for index, frame in counted(path, demux(container, stream)):
            yield _converted(path, convert, frame, index, info)


def frame_rate(fps: float) -> Fraction:
    """Frames per second as a fraction that containers can hold; ValueError when it is none."""
    if not 1e-4 <= fps <= 1e6:
        raise ValueError(f"a frame rate is 0.0001 to 1000000 frames per second, got {fps:g}")
    return Fraction(fps).limit_denominator(1001) if fps > 1 else 1 / Fraction(1 / fps).limit_denominator(1001)


def write_video(path: str | Path, video: Tensor, fps: float, *, scale: int = 1) -> None:
    """Write (3, T, H, W) uint8 as `video_writer` does."""
    with video_writer(path, fps, scale=scale) as append:
        append(video)


@contextmanager
def video_writer(
    path: str | Path, fps: float, *, scale: int = 1, audio: Path | None = None
) -> Iterator[Callable[[Tensor], None]]:
    """Write H.264 in mp4 that every browser plays, in memory that does not grow: yields a function that appends frames
    (3, T, H, W) uint8. `scale` enlarges pixels for viewing. `audio`: a file of `audio_file`, which is copied up to the
    end of the video.

    4:2:0 video has even sides: an odd one is lengthened by its last row or column.
    """
    rate = frame_rate(fps)
    with write_atomically(path) as temporary, ExitStack() as opened:
        options = {"movflags": "+faststart"}
        source = None if audio is None else opened.enter_context(open_audio(audio))
        container = opened.enter_context(av.open(str(temporary), "w", format="mp4", options=options))
        stream: Any = container.add_stream("libx264", rate=rate, options=REPEATABLE | {"crf": "16"})
        stream.pix_fmt = "yuv420p"
        encode, written = ImageEncoder(stream), 0
        copy = None if source is None else AudioCopy(*source, container)

        def append(video: Tensor) -> None:
            nonlocal written
            for image in _even_images(video, scale):
                container.mux(encode(image))
                written += 1
                if copy is not None:
                    copy.up_to(float(written / rate))

        yield append
        if not written:
            raise ValueError(f"no frames were written to {path}")
        container.mux(stream.encode())


def _even_images(video: Tensor, scale: int) -> Frames:
    """(3, T, H, W) uint8 -> images with even sides, enlarged."""
    if video.ndim != 4 or video.shape[0] != 3 or not video.shape[1]:
        raise ValueError(f"a video to write is (3, T, H, W) uint8 with T > 0, got {tuple(video.shape)}")
    pixels = video.permute(1, 2, 3, 0).cpu().numpy()
    if pixels.dtype != np.uint8:
        raise ValueError(f"a video to write is uint8, got {video.dtype}; use genvid.data.to_uint8")
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    return np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), mode="edge")


def video_bytes(video: Tensor, fps: float, *, scale: int = 1) -> bytes:
    """The mp4 that `write_video` writes, as bytes, to embed in a page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"  # moving the index to the front needs a real file
        write_video(file, video, fps, scale=scale)
        return file.read_bytes()


def _probe_images(folder: Path) -> VideoInfo:
    """Every picture is opened, so that a damaged one is found now."""
    try:
        pictures = (read_image(image) for image in list_images(folder))
        sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
    except ValueError as error:
        raise VideoError(str(error)) from None
    if not sizes:
        raise VideoError(f"{folder} holds no pictures")
    if len(set(sizes)) > 1:
        raise VideoError(f"{folder} holds pictures of several sizes: {sorted(set(sizes))}")
    height, width = sizes[0]
    return VideoInfo(len(sizes), height, width, fps=24.0, first_pts=0, pts_step=None)


def _read_images(folder: Path, wanted: range, info: VideoInfo) -> Iterator[Frames]:
    """The wanted pictures; the folder is listed once."""
    images = list_images(folder)
    for index in wanted:
        try:
            picture = read_image(images[index])
        except (ValueError, IndexError) as error:
            raise VideoError(f"{folder} changed after it was probed: {error}") from None
        if picture.shape[:2] != (info.height, info.width):
            raise VideoError(_resized(folder, (info.height, info.width), picture.shape[:2], index))
        yield picture


def _timing(stamps: list[int | None]) -> tuple[int, float | None]:
    """First time stamp and step, if every frame's own stamp rounds back to its index."""
    if any(stamp is None for stamp in stamps) or len(stamps) < 2:
        return 0, None
    pts = np.array(stamps, dtype=np.float64)
    step = (pts[-1] - pts[0]) / (len(pts) - 1)
    if step <= 0 or (np.rint((pts - pts[0]) / step) != np.arange(len(pts))).any():
        return 0, None
    return int(pts[0]), float(step)


def _thinned(points: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Seek points at a distance from each other; none where their time stamps do not rise."""
    kept: list[tuple[int, int]] = []
    for number, (index, stamp) in enumerate(points):
        if number and stamp <= points[number - 1][1]:
            return ()
        if not kept or index >= kept[-1][0] + _POINT_DISTANCE:
            kept.append((index, stamp))
    return tuple(kept)


def _decode(path: str | Path, wanted: range, info: VideoInfo, *, seek: bool) -> Frames | None:
    """The wanted frames; None if the file does not hold them at the positions of `info`."""
    clip = np.empty((len(wanted), info.height, info.width, 3), np.uint8)
    filled = 0
    with open_stream(path) as (container, stream):
        convert = FrameConverter(path, stream)
        if seek:
            numbered = _from_key(container, stream, info, wanted[0])
        else:
            numbered = counted(path, demux(container, stream))
        for index, frame in numbered:
            if index in wanted:
                clip[filled] = _converted(path, convert, frame, index, info)
                filled += 1
                if filled == len(wanted):
                    return clip
    return None


def _from_key(container: Any, stream: Any, info: VideoInfo, first: int) -> Iterator[tuple[int, Any]]:
    """Frames with their index from a key frame at or before `first`. It ends at a frame that is not the one that the
    probe found there."""
    stamps = {index: stamp for index, stamp in info.seek_points if index <= first}
    if info.pts_step is not None:
        stamps = {first: math.floor(info.first_pts + first * info.pts_step)}
    try:
        container.seek(max(stamps.values()), stream=stream)
    except (FFmpegError, ValueError):  # no index in the file, or no point before `first`
        return
    frames = dropwhile(lambda frame: not frame.key_frame, decode(demux(container, stream)))
    key = next(frames, None)
    begin = None if key is None else _index(key, info)
    if begin is None or begin > first:
        return
    for index, frame in enumerate(chain([key], frames), begin):
        if frame.is_corrupt or (info.pts_step is not None and _index(frame, info) != index):
            return
        yield index, frame


def _index(frame: Any, info: VideoInfo) -> int | None:
    """Index of a frame by its time stamp, of a key frame by the table of seek points; None where it has none."""
    if info.pts_step is None:
        return next((index for index, stamp in info.seek_points if stamp == frame.opaque), None)
    return None if frame.pts is None else round(float(frame.pts - info.first_pts) / info.pts_step)


def _converted(path: str | Path, convert: FrameConverter, frame: Any, index: int, info: VideoInfo) -> Frames:
    pixels = convert(frame)
    if pixels.shape[:2] != (info.height, info.width):
        raise VideoError(_resized(path, (info.height, info.width), pixels.shape[:2], index))
    return pixels


def _resized(path: str | Path, before: tuple[int, ...], after: tuple[int, ...], index: int) -> str:
    return (
        f"{path} changes its size from {before[1]} x {before[0]} to {after[1]} x {after[0]} at frame {index}: split it "
        "there"
    )
