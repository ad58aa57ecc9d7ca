"""Encoding and decoding of many clips, a few at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from genvid.tokens import BlockTokens, VideoTokenizer


@torch.no_grad()
def encode(tokenizer: VideoTokenizer, video: Tensor, batch_size: int) -> BlockTokens:
    """(N, 3, T, H, W) -> the tokens of all clips, encoded `batch_size` at a time."""
    return BlockTokens.concatenate([tokenizer.encode(part) for part in torch.split(video, batch_size)])


@torch.no_grad()
def decode(tokenizer: VideoTokenizer, tokens: BlockTokens, batch_size: int) -> Tensor:
    """Tokens of N clips -> (N, 3, T, H, W) clamped to [-1, 1], decoded `batch_size` at a time."""
    starts = range(0, len(tokens.keep), batch_size)
    return torch.cat([tokenizer.decode(tokens[i : i + batch_size]).clamp(-1, 1) for i in starts])
