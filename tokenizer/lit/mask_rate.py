"""The size of a keep mask: bits of an adaptive arithmetic code.

The context of a position is the mask at this position in the last block, to its left and above it: eight cases. Their
probabilities are counted over earlier blocks, which the decoder has too; an arithmetic coder comes within two bits of
the sum. One of three block types marks blocks that are kept or dropped completely.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PRIOR = 0.5
"""Initial count of each case (Krichevsky and Trofimov 1981)."""


def mask_bits(keep: Tensor, columns: int) -> Tensor:
    """(B, G, L) kept positions in frames of `columns` columns -> (B,) float64 bits."""
    frames = torch.unflatten(keep, 2, (-1, columns))
    clips = len(keep)
    counts = torch.full((clips, 8, 2), _PRIOR, dtype=torch.float64, device=keep.device)
    bits = torch.zeros(clips, dtype=torch.float64, device=keep.device)
    last = torch.zeros_like(frames[:, 0])
    for frame in frames.unbind(1):
        left, above = torch.zeros_like(frame), torch.zeros_like(frame)
        left[:, :, 1:], above[:, 1:] = frame[:, :, :-1], frame[:, :-1]
        symbol = (((last.long() * 2 + left) * 2 + above) * 2 + frame).flatten(1)
        probability = (counts / counts.sum(2, keepdim=True)).flatten(1)
        coded = -probability.gather(1, symbol).log2().sum(1)
        mixed = frame.flatten(1).any(1) & ~frame.flatten(1).all(1)
        bits += math.log2(3) + torch.where(mixed, coded, 0)
        seen = torch.zeros_like(probability).scatter_add_(1, symbol, torch.ones_like(symbol, dtype=torch.float64))
        counts += torch.where(mixed[:, None], seen, 0).view_as(counts)
        last = frame
    return bits
