"""The contract of teachers: a clip -> features of its blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genvid.config import Choice


class Teacher(nn.Module, ABC):
    """Features of a clip, by block and cell of the picture."""

    name: str
    width: int
    """Channels of a feature vector."""

    # A graph of its own: the tokenizer is compiled in one piece, and networks of others may not be compilable.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def forward(self, video: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        """(B, 3, T, H, W) in [-1, 1] -> patches (B, blocks, h, w, width) and pooled vectors (B, blocks, width)."""
        patches, pooled = self.extract(video, blocks)
        return patches.float(), pooled.float()

    def check(self, datasets: Sequence[object]) -> None:
        """ValueError where the teacher has no features of these clips; a network has those of any."""

    @abstractmethod
    def extract(self, video: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        """`forward`, in the precision of the run."""


@dataclass(frozen=True)
class TeacherConfig(Choice):  # type: ignore[misc]
    """Which teacher."""

    @abstractmethod
    def build(self) -> Teacher:
        """The frozen network; ValueError or CheckpointError where it cannot be loaded."""
