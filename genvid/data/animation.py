"""Videos as animated WebP pictures: Markdown and README pages show these in place, and no video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
from torch import Tensor

from genvid.data.video import frame_rate
from genvid.files import write_atomically


def write_animation(path: str | Path, video: Tensor, fps: float) -> None:
    """Write (3, T, H, W) uint8 as an endless animated WebP."""
    height, width = video.shape[2:]
    rate = frame_rate(fps)
    with write_atomically(path) as temporary, av.open(str(temporary), "w", "webp", options={"loop": "0"}) as container:
        stream: Any = container.add_stream("libwebp_anim", rate=rate, options={"quality": "75"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for image in video.permute(1, 2, 3, 0).contiguous().cpu().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
