"""Generation: how far samples are from real clips, how far real clips are from each other, and is the class right."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from genvid.eval.classifier import VideoClassifier
from genvid.eval.features import FeatureNetwork
from genvid.eval.metrics.frechet import FrechetVideoDistance
from genvid.eval.protocols import Protocol
from genvid.eval.reconstruction import round_to_bytes


@torch.no_grad()
def evaluate_generation(
    real: Iterable[Tensor], generated: Iterable[Tensor], *, features: FeatureNetwork, protocol: Protocol
) -> dict[str, float]:
    """Two streams of batches (B, 3, T, H, W) in [-1, 1] -> the Frechet distance, its floor and the counts.

    The floor is the distance between the even and the odd clips of the real stream: half as many clips on each side,
    so it is an upper bound of what perfect samples would score.
    """
    distance = FrechetVideoDistance(features, ddof=protocol.ddof)
    floor = FrechetVideoDistance(features, ddof=protocol.ddof)
    position = 0
    for video in real:
        video = _as_scored(video, protocol)
        distance.to(video.device).update(video, real=True)
        even = (torch.arange(position, position + len(video)) % 2 == 0).to(video.device)
        for part, side in ((video[even], True), (video[~even], False)):
            if len(part):
                floor.to(video.device).update(part, real=side)
        position += len(video)
    for video in generated:
        distance.to(video.device).update(_as_scored(video, protocol), real=False)
    return {
        distance.name: float(distance.compute()),
        f"{distance.name}, real against real": float(floor.compute()),
        "real clips": float(distance.real_features_num_samples),
        "generated clips": float(distance.fake_features_num_samples),
    }


@torch.no_grad()
def class_accuracy(classifier: VideoClassifier, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Batches of videos (B, 3, T, H, W) in [-1, 1] with the (B,) classes asked for -> how often the classifier agrees,
    a fraction, and the count."""
    right = total = 0
    for video, labels in batches:
        right += int((classifier(video).argmax(-1) == labels).sum())
        total += len(labels)
    if not total:
        raise ValueError("the class accuracy of no clips")
    return {"class as asked": right / total, "clips": float(total)}


def _as_scored(video: Tensor, protocol: Protocol) -> Tensor:
    """Round and resize as the protocol says."""
    if protocol.quantize:
        video = round_to_bytes(video)
    side = protocol.scored_resolution
    if side is not None and tuple(video.shape[-2:]) != (side, side):
        frames = video.transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, (side, side), mode="bilinear", align_corners=False, antialias=True)
        video = frames.view(len(video), -1, 3, side, side).transpose(1, 2)
    return video
