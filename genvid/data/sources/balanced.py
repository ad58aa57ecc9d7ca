"""A source whose groups are drawn equally often, whatever number of clips each has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from genvid.data.clips import ClipConfig
from genvid.data.sources.base import Source, SourceConfig


@SourceConfig.register_subclass("balanced")
@dataclass(frozen=True)
class BalancedConfig(SourceConfig):
    """The items of `source`. Training draws each of its folders, or classes, as often as any other, and the items of
    one as often as each other: a folder of a thousand scenes at one table counts as much as one of ten."""

    source: SourceConfig
    by: Literal["folder", "class"] = "folder"
    """The first folder in the names of the items, or their class."""

    def split_name(self) -> str:
        return self.source.split_name()

    def open(self, clip: ClipConfig, *, strict: bool = False) -> Source:
        source = self.source.open(clip, strict=strict)
        groups = source.labels if self.by == "class" else [_folder(name) for name in source.names]
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        members = torch.tensor([numbers[group] for group in groups])
        weights = torch.ones(len(groups), dtype=torch.float64) if source.weights is None else source.weights
        totals = torch.zeros(len(numbers), dtype=torch.float64).index_add(0, members, weights)
        source.weights = weights / totals[members]
        return source


def _folder(name: str) -> str:
    """First folder in the name of an item; those without one are a group too."""
    return name.partition("/")[0] if "/" in name else ""
