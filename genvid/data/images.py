"""A video as a folder of numbered pictures, the way DAVIS has it: frame i is the i-th in order of their names."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

IMAGES = (".jpg", ".jpeg", ".png")


def list_images(folder: Path) -> list[Path]:
    """The pictures of a folder, in order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB; ValueError when the file is no picture."""
    try:
        with av.open(str(path)) as container:
            frames = list(container.decode(video=0))  # to its end: see _frames in video.py
            image: NDArray[np.uint8] = frames[0].to_ndarray(format="rgb24")
            return image
    except (FFmpegError, OSError, IndexError) as error:
        raise ValueError(f"{path} cannot be decoded ({error})") from None
