"""Generation: distance of samples to real clips, distance between real clips, and how often the class is right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.aggregation import MeanMetric, SumMetric
from torchmetrics.utilities import dim_zero_cat

from genvid.eval.features.base import FeatureNetwork
from genvid.eval.features.classifier import VideoClassifier
from genvid.eval.metrics.frechet import FEWEST_REAL, frechet_distance, frechet_name, real_halves
from genvid.eval.pixels import as_scored
from genvid.eval.protocols import EvaluationProtocol


@torch.no_grad()
def evaluate_generation(
    real: Iterable[Tensor],
    generated: Iterable[Tensor],
    *,
    features: FeatureNetwork,
    protocol: EvaluationProtocol,
    start: int = 0,
) -> dict[str, float]:
    """Two streams of batches (B, 3, T, H, W) in [-1, 1] -> the Frechet distance, its floor and the counts.

    The floor is the distance between two halves of the real stream (`real_halves`). Half as many clips on each side
    make it an upper bound of the distance of perfect samples. Only feature vectors are kept, never the clips.
    `start` is the number of the first real clip in the whole set, where several processes share one.
    """
    rows, made = _FeatureRows(features, protocol, start), _FeatureRows(features, protocol)
    rows.extend(real)
    real_rows = rows.compute()
    if len(real_rows) < FEWEST_REAL:
        raise ValueError(f"a distance and its floor need at least {FEWEST_REAL} real clips, got {len(real_rows)}")
    made.extend(generated)
    made_rows, name = made.compute(), frechet_name(features)
    return {
        name: frechet_distance(real_rows, made_rows, ddof=protocol.ddof),
        f"{name}, real against real": frechet_distance(*real_halves(real_rows), ddof=protocol.ddof),
        "real clips": float(len(real_rows)),
        "generated clips": float(len(made_rows)),
    }


class _FeatureRows(Metric):  # type: ignore[misc]
    """Feature vectors of a stream of clips, those of all processes in the order of the clips' numbers."""

    rows: list[Tensor]
    numbers: list[Tensor]

    def __init__(self, features: FeatureNetwork, protocol: EvaluationProtocol, start: int = 0) -> None:
        super().__init__()
        self.features, self.protocol, self.start = features, protocol, start
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("numbers", default=[], dist_reduce_fx="cat")

    def extend(self, batches: Iterable[Tensor]) -> None:
        """Add the clips of a stream of batches (B, 3, T, H, W)."""
        for video in batches:
            self.to(video.device).update(video)

    def update(self, video: Tensor) -> None:
        scored = as_scored(video, self.protocol)
        self.features.check(scored)
        self.rows.append(self.features(scored))
        self.numbers.append(torch.arange(self.start, self.start + len(video), device=video.device))
        self.start += len(video)

    def compute(self) -> Tensor:
        """(N, F)"""
        if len(self.rows) == 0:
            raise ValueError("a Frechet distance of no clips: the batches were empty")
        rows: Tensor = dim_zero_cat(self.rows)
        return rows[dim_zero_cat(self.numbers).argsort(stable=True)]


class ClassAccuracy:
    """How often a classifier agrees with the class that was asked for, over all processes."""

    def __init__(self, classifier: VideoClassifier) -> None:
        self.classifier = classifier
        self._agreement, self._clips = MeanMetric(), SumMetric()

    @torch.no_grad()
    def counted(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Batches of videos (B, 3, T, H, W) in [-1, 1] and (B,) classes -> the videos, counted as they pass."""
        for video, labels in batches:
            agreed = (self.classifier(video).argmax(-1) == labels).float()
            self._agreement.to(video.device).update(agreed)
            self._clips.to(video.device).update(len(labels))
            yield video

    def compute(self) -> dict[str, float]:
        """The agreement, a fraction, and the count of clips; ValueError where there were none."""
        if not self._agreement.update_called:
            raise ValueError("the class accuracy of no clips: the batches were empty")
        return {"class as asked": float(self._agreement.compute()), "clips": float(self._clips.compute())}


def class_accuracy(classifier: VideoClassifier, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Agreement of a classifier with the classes of a stream of (videos, classes)."""
    accuracy = ClassAccuracy(classifier)
    for _ in accuracy.counted(batches):
        pass
    return accuracy.compute()
