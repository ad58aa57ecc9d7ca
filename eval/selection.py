"""The clips of an evaluation: the conditions of the models, the real clips beside the outputs, and the protocols."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genvid.batch import Batch
from genvid.data.dataset import ClipDataset
from genvid.data.loader import load_batches
from genvid.data.sources.base import SourceConfig
from genvid.eval.features.base import FeatureNetwork
from genvid.eval.listings import listed
from genvid.eval.protocols import PREPARED, EvaluationProtocol
from genvid.files import json_digest


@dataclass(frozen=True)
class Selection:
    """Clips of a data set by position."""

    dataset: ClipDataset
    items: list[tuple[int, int]]
    """Item and clip seed."""

    def __len__(self) -> int:
        return len(self.items)

    def labels(self) -> Tensor:
        """(N,) class numbers."""
        return torch.tensor([self.dataset.source.labels[index] for index, _ in self.items])

    def names(self) -> list[str]:
        """File of each clip below the folder of its source, with the first frame where that is fixed."""
        return [self.dataset.name(index) for index, _ in self.items]

    def load(self, parts: Sequence[Tensor], *, workers: int, device: torch.device) -> Iterator[Batch]:
        """Batches of these positions, with "video" (B, 3, T, H, W) in [-1, 1] and "label" (B,)."""
        wanted = [[self.items[i] for i in part.tolist()] for part in parts]
        return load_batches(self.dataset, wanted, workers=workers, device=device)

    def fingerprint(self) -> str:
        """Short hash of the clips, their files and the clip rule."""
        return json_digest([self.dataset.fingerprint(), self.items])[:24]


@dataclass(frozen=True)
class ClassRequests:
    """Samples by position, of which an evaluation needs the class alone."""

    numbers: list[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def labels(self) -> Tensor:
        """(N,) class numbers."""
        return torch.tensor(self.numbers)

    def names(self) -> list[str]:
        """A name for each sample: its position."""
        return [f"sample {position}" for position in range(len(self))]

    def fingerprint(self) -> str:
        """Short hash of the classes."""
        return json_digest(self.numbers)[:24]


@dataclass(frozen=True)
class EvaluationClips:
    """Clips of an evaluation, and the protocols that its numbers bear."""

    protocol: EvaluationProtocol
    """Of Frechet distances."""
    pixel_protocol: EvaluationProtocol
    """Of numbers that no feature network has a part in."""
    real: Selection
    """Real clips that outputs are compared with."""
    requests: Selection | ClassRequests | None = None
    """The conditions of the models, where these are not the clips of `real`."""
    others: Selection | None = None
    """As many other real clips, for the floor of the distance; None: too few are left."""
    test: Selection | None = None
    """Real clips that no model was trained on: samples are compared with them too."""

    @property
    def dataset(self) -> ClipDataset:
        return self.real.dataset

    @property
    def conditioning(self) -> Selection | ClassRequests:
        """One entry for each output of a model."""
        return self.real if self.requests is None else self.requests

    @property
    def shows_frames(self) -> bool:
        """Whether models are given frames; samples are made of a class."""
        return self.protocol.task != "generation" and isinstance(self.conditioning, Selection)


def protocol_clips(
    protocol: EvaluationProtocol,
    source: SourceConfig,
    *,
    features: FeatureNetwork | None,
    test_source: SourceConfig | None = None,
    sampler_seeds: int | None = None,
    resolution: int | None = None,
    partial: bool = False,
) -> EvaluationClips:
    """The clips that a protocol draws from a source.

    `resolution`: side of the model's frames in pixels. `test_source`: see `EvaluationClips.test`.
    ValueError when the data, the features, the seeds or the resolution are not those of the protocol, unless `partial`:
    then the numbers bear a name that lists the differences.
    """
    sized = protocol.adapted(resolution=resolution or protocol.resolution)
    dataset = _open(source, sized)
    of_pixels = sized.adapted(
        videos=dataset.source.videos if protocol.videos is not None else None,
        names=listed(protocol.names, dataset.source.names),
        sampler_seeds=sampler_seeds or protocol.sampler_seeds,
        resize=PREPARED if dataset.source.prepared else protocol.resize,
    )
    followed = of_pixels.adapted(features="" if features is None else features.name)
    if not partial and followed != protocol:
        raise ValueError(
            f"this would not be {protocol.name} but '{followed.name}'; pass `partial` (--partial) to run it under "
            "that name"
        )
    real = _select(followed, dataset, followed.draw(len(dataset)))
    rest = followed.draw_others(len(dataset), [index for index, _ in real.items])
    test = None
    if test_source is not None and features is not None:
        unseen = _open(test_source, sized)
        count = min(len(real), len(unseen))
        test = _select(followed, unseen, replace(followed, count=count).draw(len(unseen)))
    others = _select(followed, dataset, rest) if rest else None
    return EvaluationClips(followed, of_pixels, real, others=others, test=test)


def _open(source: SourceConfig, protocol: EvaluationProtocol) -> ClipDataset:
    """Files that cannot be used are left out and counted when they are listed; one that fails later is an error,
    because another in its place would be another set of clips. Where the number of videos is not published, all must be
    usable."""
    dataset = ClipDataset(source, protocol.clip_rule(), strict=protocol.any_size)
    dataset.strict = True
    return dataset


def _select(protocol: EvaluationProtocol, dataset: ClipDataset, indices: Sequence[int]) -> Selection:
    return Selection(dataset, list(zip(indices, protocol.clip_seeds(indices), strict=True)))
