"""A tokenizer and the rule that decides how many of its tokens are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genvid.allocation import Allocator, AllocatorConfig, build_allocator
from genvid.checkpoint import fingerprint, resolve
from genvid.files import sha256
from genvid.recipes.loading import device, load_adaptok, load_calibration, load_scorer
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

    def made_from(self) -> dict[str, str]:
        """Fingerprints by role (genvid.provenance)."""
        models = {"tokenizer": self.tokenizer, "scorer": self.scorer}
        prints = {role: fingerprint(resolve(folder)) for role, folder in models.items() if folder is not None}
        return prints if self.calibration is None else prints | {"calibration": sha256(self.calibration)[:16]}

    def build(self, frames: int) -> tuple[AdapTok, Allocator, list[int]]:
        """Tokenizer, allocator and candidate lengths of a block, for clips of this many frames, on this device."""
        tokenizer = load_adaptok(self.tokenizer).to(device())
        scorer = predictor = calibration = None
        sizes = list(range(1, tokenizer.spec.block_capacity + 1))
        if self.scorer is not None:
            scorer = load_scorer(self.scorer, tokenizer).to(device())
            predictor = ScorerPredictor(tokenizer, scorer)
            sizes = predictor.sizes.tolist()
        if self.calibration is not None:
            calibration = load_calibration(self.calibration, tokenizer, scorer)
            sizes = list(calibration.sizes)
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
