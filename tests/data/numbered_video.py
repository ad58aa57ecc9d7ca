"""Clips that tests make themselves: every frame shows its own number as eight black or white bars."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 8


def make_video(
    path: Path,
    frames: int = 40,
    *,
    codec: str = "libx264",
    b_frames: int = 0,
    gop: int = 12,
    size: tuple[int, int] = (32, 64),
    stamps: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    setup: Callable[[Any], None] | None = None,
    draw: Callable[[int, tuple[int, int]], np.ndarray] | None = None,
) -> Path:
    """A video whose frame i reads i, or shows `draw(i, size)`; `stamps` are its display times in hundredths of a
    second, `options` the encoder's, `metadata` the file's, and `setup` changes the stream before the first frame."""
    draw = draw or picture
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(f"file:{path}", "w") as container:
        container.metadata.update(metadata or {})
        stream: Any = container.add_stream(codec, rate=100 if stamps else 25, options=dict(options or {}))
        stream.height, stream.width, stream.pix_fmt = *size, "rgb8" if codec == "gif" else "yuv420p"
        if codec != "gif":
            stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        if setup:
            setup(stream)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(i, size), format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts = stamps[i] if stamps else i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (32, 64)) -> None:
    """The frames of such a video as PNG files."""
    folder.mkdir(parents=True)
    for number in range(count):
        with av.open(str(folder / f"{number:05d}.png"), "w", format="image2") as container:
            stream: Any = container.add_stream("png", rate=1)
            stream.width, stream.height, stream.pix_fmt = size[1], size[0], "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")))
            container.mux(stream.encode())


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    bars = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8) * 255
    return np.broadcast_to(bars.repeat(size[1] // BITS)[None, :, None], (*size, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """(T, H, W, 3) -> what each frame reads."""
    bars = frames.mean((1, 3)).reshape(len(frames), BITS, -1).mean(2) > 127
    return [int(sum(1 << bit for bit in range(BITS) if row[bit])) for row in bars]


def packets(file: Path) -> list[tuple[int, int]]:
    """Position and size in bytes of every coded frame."""
    with av.open(str(file)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def cut_short(file: Path, *, frames: int) -> Path:
    """Cut a file after its first coded frames, as an interrupted copy does."""
    position, size = packets(file)[frames - 1]
    file.write_bytes(file.read_bytes()[: position + size])
    return file
