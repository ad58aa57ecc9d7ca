"""A video as a folder of numbered pictures, the way DAVIS has it: frame i is the i-th in natural order of their names
(frame_2 before frame_10). Pictures are read by Pillow, which finds cut files and holds them upright."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from genvid.data.frames import over_black

IMAGES = (".jpg", ".jpeg", ".png")


def list_images(folder: Path) -> list[Path]:
    """The pictures of a folder, in natural order of their names. Hidden files are none."""
    return sorted(find_images(folder), key=lambda path: natural_order(path.name))


def find_images(folder: Path) -> Iterator[Path]:
    """The same in any order."""
    return (path for path in folder.iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith("."))


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A key for sorting: numbers within names count as numbers."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))], name


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB as a viewer shows it: upright by its EXIF orientation, over black where it is transparent.
    ValueError when the file is no picture, or is cut short."""
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
                return np.repeat(((np.asarray(upright, np.int64) + 128) // 257).astype(np.uint8)[..., None], 3, 2)
            return over_black(np.array(upright.convert("RGBA" if upright.has_transparency_data else "RGB")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be decoded ({error})") from None


def png(image: Tensor) -> bytes:
    """(3, H, W) uint8 -> a PNG file."""
    return _encoded(image, "PNG")


def jpeg(image: Tensor) -> bytes:
    """(3, H, W) uint8 -> a JPEG file."""
    return _encoded(image, "JPEG", quality=92, subsampling=0)


def _encoded(image: Tensor, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, kind, **options)
    return file.getvalue()
