"""Videos and images as users hold them, in NumPy or PyTorch <-> videos (B, 3, T, H, W) in [-1, 1].

Colours are the last axis, or the first (the second of a batch). Pixels are uint8, or floats in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genvid.data.clips import to_float, to_uint8

Array = NDArray[Any] | Tensor


@dataclass(frozen=True)
class ArrayForm:
    """Library, axes and type of an array of pixels. By default those of a batch (B, T, H, W, 3) in NumPy, uint8."""

    ndim: int = 5
    """3: an image, 4: a video, 5: a batch of videos."""
    channels_last: bool = True
    dtype: torch.dtype = torch.uint8
    device: torch.device | None = None
    """None: a NumPy array."""

    def restore(self, video: Tensor) -> Array:
        """(B, 3, T, H, W), clamped to [-1, 1] -> an array of this form. Of a video B is 1, of an image T is 1 too."""
        pixels = to_uint8(video) if self.dtype == torch.uint8 else ((video.float() + 1) / 2).clamp(0, 1).to(self.dtype)
        if self.ndim < 5:
            pixels = pixels[0]
        if self.ndim == 3:
            pixels = pixels[:, 0]
        if self.channels_last:
            pixels = pixels.movedim(_channel_axis(self.ndim), -1)
        pixels = pixels.contiguous()
        return pixels.cpu().numpy() if self.device is None else pixels.to(self.device)


def read_array(array: Any) -> tuple[Tensor, ArrayForm]:
    """A NumPy array (or anything that NumPy reads as one) or a tensor -> the video (B, 3, T, H, W) float32 in [-1, 1].

    ValueError in one sentence for axes or pixels of another kind.
    """
    pixels = array.detach() if isinstance(array, Tensor) else torch.from_numpy(_numbers(array))
    shape, ndim = tuple(pixels.shape), pixels.ndim
    axis = _channel_axis(ndim)
    if ndim not in (3, 4, 5) or 0 in shape or 3 not in (shape[-1], shape[axis]):
        raise ValueError(
            "a video is (T, H, W, 3) or (3, T, H, W), several are (B, T, H, W, 3) or (B, 3, T, H, W), and an image is "
            f"(H, W, 3) or (3, H, W), got {shape}"
        )
    device = pixels.device if isinstance(array, Tensor) else None
    form = ArrayForm(ndim, shape[-1] == 3, pixels.dtype, device)
    if form.channels_last:
        pixels = pixels.movedim(-1, axis)
    if ndim == 3:
        pixels = pixels[:, None]
    return _to_float(pixels if ndim == 5 else pixels[None]), form


def _numbers(array: Any) -> NDArray[Any]:
    """A copy: arrays of images are often read-only or reversed, which PyTorch does not take."""
    numbers = np.array(array, order="C")
    if numbers.dtype.kind not in "biuf":
        raise ValueError(f"a video or image is an array of pixels, got a {type(array).__name__} ({numbers.dtype})")
    return numbers


def _channel_axis(ndim: int) -> int:
    return 1 if ndim == 5 else 0


def _to_float(pixels: Tensor) -> Tensor:
    if pixels.dtype == torch.uint8:
        return to_float(pixels)
    if not pixels.is_floating_point():
        raise ValueError(f"pixels are uint8 from 0 to 255 or floats from 0 to 1, got {pixels.dtype}")
    least, most = float(pixels.min()), float(pixels.max())
    if not (least >= 0 and most <= 1):
        raise ValueError(
            f"pixels that are floats are from 0 to 1, got {least:g} to {most:g}: clamp them, give uint8, or "
            "(video + 1) / 2 of a video in [-1, 1]"
        )
    return pixels.float() * 2 - 1
