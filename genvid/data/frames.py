"""A decoded frame as a player shows it: RGB by its own colour tags, square pixels, upright, over black."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.format import VideoFormat
from av.video.reformatter import Colorspace, VideoReformatter
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""(T, H, W, 3) RGB."""

_UNTAGGED = 2
"""AVCOL_SPC_UNSPECIFIED."""


class VideoError(ValueError):
    """A video file that cannot be used."""


class FrameConverter:
    """Converts the decoded frames of one stream, (H, W, 3) uint8 each. It keeps its scaler from frame to frame."""

    def __init__(self, path: str | Path, stream: Any) -> None:
        self._path = path
        self._aspect = float(stream.sample_aspect_ratio or 1)
        self._reformatter = VideoReformatter()
        self._angle: int | None = None
        self._orientation = (False, 1, 1)

    def size(self, frame: Any) -> tuple[int, int]:
        """Height and width of a frame on the screen."""
        height, width = self._square(frame)
        turned, _, _ = self._orient(frame)
        return (width, height) if turned else (height, width)

    def __call__(self, frame: Any) -> Frames:
        height, width = self._square(frame)
        transparent = _has_alpha(frame.format.name)
        layout = "rgba" if transparent else "rgb24"
        colours = _colorspace(frame)
        image: Any = self._reformatter.reformat(frame, width, height, layout, src_colorspace=colours, threads=1)
        pixels: Frames = over_black(image.to_ndarray()) if transparent else image.to_ndarray()
        turned, down, across = self._orient(frame)
        if turned:
            pixels = pixels.swapaxes(0, 1)
        return np.ascontiguousarray(pixels[::down, ::across])

    def _orient(self, frame: Any) -> tuple[bool, int, int]:
        """Whether rows and columns change places, then the direction (1 or -1) in which rows and columns are read. The
        display matrix is looked up where the angle, which is cheap, changes."""
        if frame.rotation != self._angle:
            self._angle = frame.rotation
            a, b, c, d = _display_matrix(frame)
            turned = abs(b) > abs(a)
            x, y, rest = (c, b, (a, d)) if turned else (a, d, (b, c))
            if max(map(abs, rest)) > 0.02 * min(abs(x), abs(y)):
                raise VideoError(f"{self._path} is shown turned by {-self._angle} degrees: only quarter turns are read")
            self._orientation = turned, (1 if y > 0 else -1), (1 if x > 0 else -1)
        return self._orientation

    def _square(self, frame: Any) -> tuple[int, int]:
        """Height and width with square pixels: the shorter side is stretched. Within 1 %, pixels count as square:
        such ratios come of rounded sizes."""
        if abs(self._aspect - 1) <= 0.01:
            return frame.height, frame.width
        return round(frame.height * max(1, 1 / self._aspect)), round(frame.width * max(1, self._aspect))


def over_black(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3 or 4) uint8 with or without alpha -> (H, W, 3)."""
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if (alpha == 255).all():
        return colours
    return ((colours.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)


def _display_matrix(frame: Any) -> tuple[float, float, float, float]:
    """(a, b, c, d): the pixel at (x, y) is shown at (a x + c y, b x + d y), but for a shift."""
    # Side data and their frame hold each other until garbage is collected: let that be a small frame.
    small = frame.reformat(8, 8, "gray", interpolation="POINT", threads=1)
    try:
        for data in small.side_data:
            if data.type is SideData.DISPLAYMATRIX:
                a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
                return a, b, c, d
    except ValueError:  # PyAV names no matrix beside data that it has no name for (18.1: EXIF), only the angle
        angle = math.radians(frame.rotation)
        return math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    return 1, 0, 0, 1


def colours_of(height: int, width: int) -> Colorspace:
    """The colours of untagged video for players: BT.709 from HD on, where FFmpeg takes all of it for BT.601."""
    return Colorspace.ITU709 if width >= 1280 or height > 576 else Colorspace.ITU601


def _colorspace(frame: Any) -> Colorspace | None:
    """The colours of a frame where FFmpeg may not find them; None: its own."""
    untagged = frame.colorspace == _UNTAGGED and not frame.format.is_rgb
    return colours_of(frame.height, frame.width) if untagged else None


@cache
def _has_alpha(name: str) -> bool:
    pixel_format = VideoFormat(name)
    return pixel_format.has_palette or len(pixel_format.components) in (2, 4)
