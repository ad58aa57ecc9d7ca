"""A source whose groups are drawn equally often, whatever number of clips each has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from genvid.data.clips import ClipConfig
from genvid.data.sources.base import Source, SourceConfig
from genvid.data.sources.joined import JoinedConfig


@SourceConfig.register_subclass("balanced")
@dataclass(frozen=True)
class BalancedConfig(SourceConfig):
    """The items of `source`. Training draws each of its folders, or classes, as often as any other, and the items of
    one as often as each other: a folder of a thousand scenes at one table counts as much as one of ten."""

    source: SourceConfig
    by: Literal["folder", "class"] = "folder"
    """The first folder in the names of the items (of joined sources within each of them), or their class."""

    def __post_init__(self) -> None:
        if self.by == "folder" and isinstance(self.source, JoinedConfig) and self.source.weights is not None:
            raise ValueError(
                "balanced by folder draws every folder equally often, whatever `weights` its joined source has: leave "
                "these out, or join balanced sources"
            )

    def split_name(self) -> str:
        return self.source.split_name()

    def open(self, clip: ClipConfig, *, strict: bool = False) -> Source:
        source = self.source.open(clip, strict=strict)
        groups = source.labels if self.by == "class" else source.folders()
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        members = torch.tensor([numbers[group] for group in groups])
        weights = torch.ones(len(groups), dtype=torch.float64) if source.weights is None else source.weights
        totals = torch.zeros(len(numbers), dtype=torch.float64).index_add(0, members, weights)
        source.weights = weights / totals[members]
        return source
