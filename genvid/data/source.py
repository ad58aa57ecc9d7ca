"""The seam between clips and where they come from: a source lists items, and makes the clip of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from genvid.config import Choice
from genvid.data.clips import ClipConfig


class Source(ABC):
    """Items with a name and a label, each of which gives a clip for a seed."""

    classes: list[str]
    """Names of the classes, by label."""
    labels: list[int]
    """Class of each item."""
    names: list[str]
    """Name of each item, the same on every machine."""

    @abstractmethod
    def clip(self, index: int, seed: int) -> Tensor:
        """(3, T, H, W) uint8 clip of an item; VideoError when its file cannot be read."""

    def attributes(self, index: int) -> dict[str, int]:
        """What else is known of an item: joins the item under these names."""
        return {}


@dataclass(frozen=True)
class SourceConfig(Choice):  # type: ignore[misc]
    """Where clips come from; `type:` in YAML chooses the subclass."""

    def open(self, clip: ClipConfig, *, strict: bool) -> Source:
        """List the items. ValueError in one sentence when there are none, or with `strict` when any is unusable."""
        raise NotImplementedError
