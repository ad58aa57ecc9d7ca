"""Video files through PyAV: probe, read frames exactly by index, write.

A frame is named by its position in decoding order from the start of the file. Time stamps are used to seek only
where a full decode has shown that they agree with that count: in AVI files with B-frames, of which UCF-101 has many,
they do not. A folder of pictures is a video too (genvid.data.images).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from genvid.data.images import list_images, read_image
from genvid.files import write_atomically

Frames = NDArray[np.uint8]
"""(T, H, W, 3) RGB."""


class VideoError(ValueError):
    """A video file that cannot be used, said in one sentence."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a full decode found in a file."""

    frames: int
    height: int
    width: int
    fps: float
    first_pts: int
    pts_step: float | None
    """Frame i is shown at first_pts + i * pts_step (rounded); None where frames must be counted from the start."""


def probe(path: str | Path) -> VideoInfo:
    """Decode the whole file once; VideoError when it is no video, is damaged or is cut short."""
    if Path(path).is_dir():
        return _probe_images(Path(path))
    stamps: list[int | None] = []
    with _open(path) as (container, stream):
        for frame in _frames(container, stream):
            stamps.append(frame.pts)
        if not stamps:
            raise VideoError(f"{path} holds no frame that can be decoded")
        # The last frames of a GOP may be missing in good files, a tenth of all may not.
        if len(stamps) < 0.9 * stream.frames:
            raise VideoError(f"{path} is cut short: {len(stamps)} of its {stream.frames} frames can be decoded")
        context = stream.codec_context
        guessed = container.format.name == "avi" and context.has_b_frames
        first, step = (0, None) if guessed else _timing(stamps)
        rate = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        return VideoInfo(len(stamps), context.height, context.width, rate, first, step)


def read_clip(path: str | Path, start: int, frames: int, stride: int = 1, *, info: VideoInfo | None = None) -> Frames:
    """Frames start, start + stride, ... of a file, exact by index: (T, H, W, 3) uint8. Pass `info` to save a probe.

    Raises VideoError when the file has too few frames or cannot be decoded.
    """
    info = info or probe(path)
    wanted = range(start, start + frames * stride, stride)
    if start < 0 or wanted[-1] >= info.frames:
        raise VideoError(f"{path} has {info.frames} frames, but frames {start} to {wanted[-1]} were asked for")
    if Path(path).is_dir():
        return _read_images(Path(path), wanted, info)
    clip = _decode(path, wanted, info, seek=True) if start and info.pts_step else None
    if clip is None:
        clip = _decode(path, wanted, info, seek=False)
    if clip is None:
        raise VideoError(f"{path} ended before frame {wanted[-1]}; it had {info.frames} frames when it was probed")
    return clip


def iterate_frames(path: str | Path, info: VideoInfo) -> Iterator[Frames]:
    """Every frame of a file, (H, W, 3) uint8, one at a time. VideoError when it cannot be decoded."""
    if Path(path).is_dir():
        for index in range(info.frames):
            yield _read_images(Path(path), range(index, index + 1), info)[0]
        return
    reformatter = VideoReformatter()
    with _open(path) as (container, stream):
        for frame in _frames(container, stream):
            image: Any = reformatter.reformat(frame, info.width, info.height, "rgb24", threads=1)
            yield image.to_ndarray()


def write_video(path: str | Path, video: Tensor, fps: float, *, scale: int = 1) -> None:
    """Write (3, T, H, W) uint8 as `video_writer` does."""
    with video_writer(path, fps, scale=scale) as append:
        append(video)


@contextmanager
def video_writer(path: str | Path, fps: float, *, scale: int = 1) -> Iterator[Callable[[Tensor], None]]:
    """Write H.264 in mp4 that every browser plays, in memory that does not grow: yields a function that appends frames
    (3, T, H, W) uint8. `scale` enlarges pixels for viewing.

    4:2:0 video has even sides: an odd one is lengthened by its last row or column.
    """
    with write_atomically(path) as temporary:
        options = {"movflags": "+faststart"}
        with av.open(str(temporary), "w", format="mp4", options=options) as container:
            rate = Fraction(fps).limit_denominator(1001)
            stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "16", "threads": "1"})
            stream.pix_fmt, size = "yuv420p", None

            def append(video: Tensor) -> None:
                nonlocal size
                images = _even_images(video, scale)
                if size is None:
                    size = stream.height, stream.width = images.shape[1:3]
                for image in images:
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                    container.mux(stream.encode(frame))

            yield append
            if size is None:
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


def _read_images(folder: Path, wanted: range, info: VideoInfo) -> Frames:
    images = list_images(folder)
    clip = np.empty((len(wanted), info.height, info.width, 3), np.uint8)
    for row, index in enumerate(wanted):
        try:
            clip[row] = read_image(images[index])
        except (ValueError, IndexError) as error:
            raise VideoError(f"{folder} changed after it was probed: {error}") from None
    return clip


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream, decoded in one thread: data workers are the parallelism."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            yield container, stream
    except (FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{path} cannot be decoded ({reason})") from None


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """What `container.decode(stream)` gives. That loses a packet's memory whenever it is left before the end, as the
    generator within it is not closed then (PyAV 18): 150 bytes a clip, for weeks."""
    with closing(container.demux(stream)) as packets:
        for packet in packets:
            yield from packet.decode()


def _timing(stamps: list[int | None]) -> tuple[int, float | None]:
    """First time stamp and step, if every frame's own stamp rounds back to its index."""
    if any(stamp is None for stamp in stamps) or len(stamps) < 2:
        return 0, None
    pts = np.array(stamps, dtype=np.float64)
    step = (pts[-1] - pts[0]) / (len(pts) - 1)
    if step <= 0 or (np.rint((pts - pts[0]) / step) != np.arange(len(pts))).any():
        return 0, None
    return int(pts[0]), float(step)


def _decode(path: str | Path, wanted: range, info: VideoInfo, *, seek: bool) -> Frames | None:
    """The wanted frames; None if the file does not hold them where `info` says."""
    clip = np.empty((len(wanted), info.height, info.width, 3), np.uint8)
    reformatter = VideoReformatter()  # one for all frames: making a scaler costs more than using it
    filled, expected = 0, None
    with _open(path) as (container, stream):
        if seek and info.pts_step is not None:
            container.seek(math.floor(info.first_pts + wanted[0] * info.pts_step), stream=stream)
        for count, frame in enumerate(_frames(container, stream)):
            index = _index(frame, info) if seek else count
            if index > wanted[0] if expected is None else index != expected:
                return None
            expected = index + 1
            if index in wanted:
                image = reformatter.reformat(frame, info.width, info.height, "rgb24", threads=1)
                clip[filled] = image.to_ndarray()
                filled += 1
                if filled == len(wanted):
                    return clip
    return None


def _index(frame: Any, info: VideoInfo) -> int:
    """Index of a frame by its time stamp; beyond every clip where it has none."""
    if frame.pts is None or info.pts_step is None:
        return info.frames
    return round(float(frame.pts - info.first_pts) / info.pts_step)
