"""Clips of a recipe, and the device it computes on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

import torch

from genvid import config as configuration
from genvid.data.clips import ClipConfig
from genvid.data.dataset import ClipDataset
from genvid.data.sources.base import ALL, SourceConfig
from genvid.eval.protocols import WINDOWS, EvaluationProtocol
from genvid.files import readable


@dataclass(frozen=True)
class VideoData:
    """Clips of a source."""

    source: SourceConfig
    clip: ClipConfig = field(default_factory=ClipConfig)
    strict: bool = False
    """Stop at the first unusable file instead of naming, counting and skipping it."""

    def open(self) -> ClipDataset:
        return ClipDataset(self.source, self.clip, strict=self.strict)

    def check_name(self, protocol: str) -> None:
        """ValueError when a protocol's name calls clips held out that are of a training split or of no split."""
        if "held out" not in protocol.replace("-", " ").lower():
            return
        split = self.source.split_name()
        if split == ALL or "train" in split:
            raise ValueError(
                f"the protocol '{protocol}' says held out, but the split of its clips is '{split}': hold clips out "
                "(data.source.held_out true, or a split of a manifest), or choose another protocol name"
            )

    def protocol(
        self, name: str, task: Literal["generation", "prediction", "reconstruction"], count: int
    ) -> EvaluationProtocol:
        """The record of numbers on `count` of these clips, with the split of the source; without a feature network."""
        self.check_name(name)
        window = self.clip.window
        return EvaluationProtocol(
            name=name,
            task=task,
            dataset=readable(str(configuration.encode(self.source))),
            split=self.source.split_name(),
            frames=None if window == "whole" else self.clip.frames,
            clips=next(clips for clips, its_window in WINDOWS.items() if its_window == window),
            count=count,
            resolution=min(self.clip.resolution),
            features="",
        )


def device() -> torch.device:
    """Where this process of a recipe computes."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
