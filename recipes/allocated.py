"""A tokenizer and the rule that decides how many of its tokens are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genvid.allocation import Allocator, AllocatorConfig, Calibration, build_allocator
from genvid.recipes.loading import device, load_adaptok, load_scorer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import ScorerPredictor
from genvid.tokens import BlockTokens, VideoTokenizer


@dataclass(frozen=True)
class AllocatedTokenizer:
    """A tokenizer and the rule that decides how many of its tokens are kept."""

    tokenizer: str
    allocator: AllocatorConfig
    scorer: str | None = None
    calibration: str | None = None

    def build(self, frames: int) -> tuple[AdapTok, Allocator, list[int]]:
        """Tokenizer, allocator and candidate lengths of a block, for clips of this many frames, on this device."""
        tokenizer = load_adaptok(self.tokenizer).to(device())
        predictor = calibration = None
        sizes = list(range(1, tokenizer.spec.block_capacity + 1))
        if self.calibration is not None:
            calibration = Calibration.load(self.calibration)
            sizes = list(calibration.sizes)
        if self.scorer is not None:
            predictor = ScorerPredictor(tokenizer, load_scorer(self.scorer, tokenizer).to(device()))
            sizes = predictor.sizes.tolist()
        blocks = tokenizer.spec.num_blocks(frames)
        return tokenizer, build_allocator(self.allocator, blocks, predictor, calibration), sizes


@torch.no_grad()
def encode(tokenizer: VideoTokenizer, video: Tensor, batch_size: int) -> BlockTokens:
    """(N, 3, T, H, W) -> the tokens of all clips, encoded `batch_size` at a time."""
    return BlockTokens.concatenate([tokenizer.encode(part) for part in torch.split(video, batch_size)])


@torch.no_grad()
def decode(tokenizer: VideoTokenizer, tokens: BlockTokens, batch_size: int) -> Tensor:
    """Tokens of N clips -> (N, 3, T, H, W) clamped to [-1, 1], decoded `batch_size` at a time."""
    starts = range(0, len(tokens.keep), batch_size)
    return torch.cat([tokenizer.decode(tokens[i : i + batch_size]).clamp(-1, 1) for i in starts])
