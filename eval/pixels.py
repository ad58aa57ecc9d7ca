"""Pixels as a protocol scores them: brought to 8 bits in its way, and resized."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from genvid.eval.protocols import EvaluationProtocol
from genvid.eval.resizing import TatsClip


def as_scored(video: Tensor, protocol: EvaluationProtocol) -> Tensor:
    """(B, 3, T, H, W) -> the same in [-1, 1], quantised and resized by the protocol."""
    video = video.clamp(-1, 1)
    if protocol.quantize == "round":
        video = round_to_bytes(video)
    elif protocol.quantize == "truncate":
        video = truncate_to_bytes(video)
    side = protocol.scored_resolution
    if side is not None and tuple(video.shape[-2:]) != (side, side):
        frames = video.transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, (side, side), mode="bilinear", align_corners=False, antialias=True)
        video = frames.view(len(video), -1, 3, side, side).transpose(1, 2)
    return video


def as_seen(video: Tensor, protocol: EvaluationProtocol) -> Tensor:
    """Scored pixels (B, 3, T, H, W) -> the frames and pixels of them that the feature network is given."""
    video, side = video[:, :, : protocol.feature_frames], protocol.feature_resolution
    if side is None:
        return video
    rule = TatsClip(resolution=(side, side))
    frames = rule.cover(video.transpose(1, 2).flatten(0, 1))
    top, left = (rule.margin(extent - side) for extent in frames.shape[2:])
    frames = frames[..., top : top + side, left : left + side]
    return frames.reshape(len(video), -1, 3, side, side).transpose(1, 2)


def round_to_bytes(video: Tensor) -> Tensor:
    """[-1, 1] -> the nearest of the 256 values that a file can hold, in [-1, 1]."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def truncate_to_bytes(video: Tensor) -> Tensor:
    """[-1, 1] -> the next lower of the 256 values, as a cast to bytes takes it, in [-1, 1].

    Values that differ from one of the 256 by rounding in float32 alone become that one.
    """
    return ((video.clamp(-1, 1) + 1) * 127.5 + 1e-4).floor() / 127.5 - 1
