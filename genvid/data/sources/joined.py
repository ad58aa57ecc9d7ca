"""Several sources as one: the published tokenizers are trained on Kinetics-600 and UCF-101 together."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, chain
from math import inf

import torch
from torch import Tensor

from genvid.data.clips import ClipConfig
from genvid.data.sources.base import Source, SourceConfig


@SourceConfig.register_subclass("joined")
@dataclass(frozen=True)
class JoinedConfig(SourceConfig):
    """The items of all `sources`, one source after the other. Classes of one name are one class."""

    sources: list[SourceConfig]
    """No tuple, whose `...` draccus takes for the type of the second of two."""
    weights: list[float] | None = None
    """Share of each source in the clips that training draws, in proportion. Without, each item comes once an epoch."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("a joined source needs at least one of `sources`")
        if self.weights is not None and len(self.weights) != len(self.sources):
            raise ValueError(f"a joined source of {len(self.sources)} `sources` has {len(self.weights)} `weights`")
        if not all(0 < weight < inf for weight in self.weights or ()):
            raise ValueError(f"weights of joined sources are above 0, got {self.weights}; leave out a source at 0")

    def split_name(self) -> str:
        return " + ".join(dict.fromkeys(source.split_name() for source in self.sources))

    def open(self, clip: ClipConfig, *, strict: bool = False) -> Source:
        return JoinedSource([source.open(clip, strict=strict) for source in self.sources], self.weights)


class JoinedSource(Source):
    """Items of several open sources."""

    def __init__(self, sources: list[Source], shares: list[float] | None = None) -> None:
        self.sources = sources
        self.classes = list(dict.fromkeys(chain.from_iterable(source.classes for source in sources)))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = [numbers[source.classes[label]] for source in sources for label in source.labels]
        self.names = [f"{which}/{name}" for which, source in enumerate(sources) for name in source.names]
        self.split = " + ".join(dict.fromkeys(source.split for source in sources))
        self.videos = sum(source.videos for source in sources)
        self.prepared = any(source.prepared for source in sources)
        self.left_out = [problem for source in sources for problem in source.left_out]
        self.digests = {f"{n}/{path}": own for n, source in enumerate(sources) for path, own in source.digests.items()}
        self.contents = hashlib.sha256(" ".join(source.contents for source in sources).encode()).hexdigest()
        self.weights = _item_weights(sources, shares)
        # Those that all items have: a batch has the same numbers of each.
        self._attributes = set.intersection(*(set(source.attributes(0)) for source in sources))
        self._firsts = [0, *accumulate(len(source.names) for source in sources)]

    def clip(self, index: int, seed: int) -> Tensor:
        source, item = self._find(index)
        return source.clip(item, seed)

    def folders(self) -> list[str]:
        return [f"{number}/{folder}" for number, source in enumerate(self.sources) for folder in source.folders()]

    def attributes(self, index: int) -> dict[str, int]:
        source, item = self._find(index)
        return {name: value for name, value in source.attributes(item).items() if name in self._attributes}

    def _find(self, index: int) -> tuple[Source, int]:
        which = bisect_right(self._firsts, index) - 1
        return self.sources[which], index - self._firsts[which]


def _item_weights(sources: list[Source], shares: list[float] | None) -> Tensor | None:
    """Weights of the items of all sources: those of one add up to its share, or without shares to its items."""
    if shares is None and all(source.weights is None for source in sources):
        return None
    counts = [len(source.names) for source in sources]
    own = [torch.ones(count) if s.weights is None else s.weights for s, count in zip(sources, counts, strict=True)]
    return torch.cat([w.double() * (share / w.sum()) for w, share in zip(own, shares or counts, strict=True)])
