"""Stand-ins of evaluations: features and models that take no time, on generated clips and on real files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genvid import noise
from genvid.batch import Batch
from genvid.data import SyntheticConfig
from genvid.eval.evaluation import Output
from genvid.eval.features.base import FeatureNetwork
from genvid.eval.protocols import EvaluationProtocol
from genvid.tokens import BlockTokens, TokenizerSpec

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
CLIPS = SyntheticConfig(clips=40, seed=3)
TOY = EvaluationProtocol("toy", "reconstruction", "generated clips", "all", 16, "first", None, 32, features="colours")


class Colours(FeatureNetwork):
    """Mean colours of four corners of space and time."""

    name, num_features, min_frames, weights = "colours", 12, 2, "of no weights"

    def extract(self, video: Tensor) -> Tensor:
        half, middle = video.shape[2] // 2, video.shape[3] // 2
        parts = (video[:, :, :half], video[:, :, half:], video[..., :middle, :], video[..., middle:, :])
        return torch.cat([part.mean((2, 3, 4)) for part in parts], 1)


class Noisy:
    """Gives back what it is given, or grey, with noise and a number of tokens that the clip's own seed decides."""

    spec: TokenizerSpec | None = TokenizerSpec(4, (32, 32), 8, 1, codebook_size=16)

    def __init__(self, amount: float = 0.2, frames: int = 16, side: int = 32, stop_after: int | None = None) -> None:
        self.amount, self.frames, self.side, self.stop_after = amount, frames, side, stop_after
        self.calls = 0
        self.shown: list[tuple[int, ...] | None] = []

    def describe(self) -> Mapping[str, Any]:
        return {"noise": self.amount}

    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        shown = conditioning.get("video")
        self.shown.append(None if shown is None else tuple(shown.shape))
        whole = shown is not None and shown.shape[2] >= self.frames
        base = shown if whole else torch.zeros(len(seeds), 3, self.frames, self.side, self.side)
        assert base is not None
        draw = noise.uniform(seeds, "noise", *base.shape[1:]).float()
        lengths = (noise.uniform(seeds, "length", 4) * 9).long()
        keep = torch.arange(8, device=seeds.device) < lengths[..., None]
        return Output(base + self.amount * (2 * draw - 1), BlockTokens(keep))
