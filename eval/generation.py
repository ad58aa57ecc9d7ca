"""Generation: how far samples are from real clips, how far real clips are from each other, and is the class right."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric, SumMetric

from genvid import noise
from genvid.eval.classifier import VideoClassifier
from genvid.eval.features import FeatureNetwork
from genvid.eval.metrics.frechet import FrechetVideoDistance
from genvid.eval.protocols import Protocol
from genvid.eval.scoring import as_scored


@torch.no_grad()
def evaluate_generation(
    real: Iterable[Tensor], generated: Iterable[Tensor], *, features: FeatureNetwork, protocol: Protocol, start: int = 0
) -> dict[str, float]:
    """Two streams of batches (B, 3, T, H, W) in [-1, 1] -> the Frechet distance, its floor and the counts.

    The floor is the distance between two halves of the real stream, about half as many clips on each side, so it is an
    upper bound of what perfect samples would score. Halves are drawn: every other clip would be every other class
    where classes take turns. `start` is the number of the first real clip in the whole set, where several processes
    share one.
    """
    distance = FrechetVideoDistance(features, ddof=protocol.ddof)
    floor = FrechetVideoDistance(features, ddof=protocol.ddof)
    position = start
    for video in real:
        video = as_scored(video, protocol)
        distance.to(video.device).update(video, real=True)
        drawn = noise.sample_seeds(0, "halves", torch.arange(position, position + len(video)))
        first = (drawn % 2 == 0).to(video.device)
        position += len(video)
        for part, side in ((video[first], True), (video[~first], False)):
            if len(part):
                floor.to(video.device).update(part, real=side)
    for video in generated:
        distance.to(video.device).update(as_scored(video, protocol), real=False)
    value, real_against_real = float(distance.compute()), float(floor.compute())
    return {
        distance.name: value,
        f"{distance.name}, real against real": real_against_real,
        "real clips": float(distance.counts[0]),
        "generated clips": float(distance.counts[1]),
    }


@torch.no_grad()
def class_accuracy(classifier: VideoClassifier, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Batches of videos (B, 3, T, H, W) in [-1, 1] with the (B,) classes asked for -> how often the classifier agrees,
    a fraction, and the count."""
    agreement, clips = MeanMetric(), SumMetric()
    for video, labels in batches:
        right = (classifier(video).argmax(-1) == labels).float()
        agreement.to(video.device).update(right)
        clips.to(video.device).update(len(labels))
    if not agreement.update_called:
        raise ValueError("the class accuracy of no clips: the batches were empty")
    return {"class as asked": float(agreement.compute()), "clips": float(clips.compute())}
