"""Sources of clips: a source lists items and makes the clip of an item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from genvid.config import Choice
from genvid.data.clips import ClipConfig

ALL, TRAINING, HELD_OUT = "all", "training", "held out"
"""Splits of data sets that have none of their own."""


class Source(ABC):
    """Items with a name and a label, each of which gives a clip for a seed."""

    classes: list[str]
    """Names of the classes, by label."""
    labels: list[int]
    """Class of each item."""
    names: list[str]
    """Name of each item, the same on every machine."""
    split: str
    """Split of the data set."""
    videos: int = 0
    """Number of video files that the items are cut from; 0 for sources without files."""
    left_out: Sequence[str] = ()
    """Listed videos that are not among the items: one sentence each, with the reason."""
    prepared: bool = False
    """Whether clips come from copies that were resized and compressed (genvid.data.sources.prepared)."""
    weights: Tensor | None = None
    """(N,) float64: relative frequency of each item in training; None: each comes once an epoch."""
    digests: Mapping[str, str] = MappingProxyType({})
    """Path of each usable video -> hash of its content."""
    contents: str = ""
    """Hash of the contents of each file; empty where names identify the contents."""

    @abstractmethod
    def clip(self, index: int, seed: int) -> Tensor:
        """(3, T, H, W) clip of an item, uint8 (float32 in [-1, 1] where the clip rule does not round).

        VideoError when its file cannot be read.
        """

    def folders(self) -> list[str]:
        """First folder in the name of each item; empty where there is none."""
        return [name.partition("/")[0] if "/" in name else "" for name in self.names]

    def attributes(self, index: int) -> dict[str, int]:
        """Further numbers of an item, which join it under these names."""
        return {}


@dataclass(frozen=True)
class SourceConfig(Choice):  # type: ignore[misc]
    """Where clips come from; `type:` in YAML chooses the subclass."""

    def split_name(self) -> str:
        """The split of its data set that the clips are of: one of `ALL`, `TRAINING`, `HELD_OUT`, or its own name."""
        raise NotImplementedError

    def open(self, clip: ClipConfig, *, strict: bool) -> Source:
        """List the items. ValueError in one sentence when there are none, or with `strict` when any is unusable."""
        raise NotImplementedError
