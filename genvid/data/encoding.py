"""Encode images through PyAV."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from genvid.data.frames import Frames, colours_of

REPEATABLE = {"threads": "1", "mbtree": "0"}
"""Options of libx264 under which the same frames give the same file: its macroblock tree reads memory beyond a row at
most sizes (112 x 112, 240 x 320). Files are 12 % larger without the tree."""


class ImageEncoder:
    """Encodes RGB images of one size by a stream of YUV pixels, in the colours in which players show their size."""

    def __init__(self, stream: Any) -> None:
        """`stream`: with its `pix_fmt`, and without a size."""
        self._stream, self._reformatter = stream, VideoReformatter()

    def __call__(self, image: Frames) -> Any:
        """(H, W, 3) uint8 -> packets."""
        stream, context = self._stream, self._stream.codec_context
        height, width = image.shape[:2]
        colours = colours_of(height, width)
        if not context.is_open:
            stream.height, stream.width = height, width
            if colours == Colorspace.ITU709:  # some players take all untagged video for BT.601
                context.colorspace = context.color_primaries = context.color_trc = colours
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        converted: Any = self._reformatter.reformat(frame, format=stream.pix_fmt, dst_colorspace=colours, threads=1)
        return stream.encode(converted)
