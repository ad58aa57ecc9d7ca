"""What a tokenized clip costs to transmit: tokens, and bits with the side information that says which were kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from genvid.tokens import BlockTokens, TokenizerSpec

_BITS_PER_CHANNEL = 16


def clip_bits(tokens: BlockTokens, spec: TokenizerSpec) -> Tensor:
    """(B,) float64: bits of each clip.

    A discrete token costs log2(codebook size) bits, a continuous one 16 bits a channel (half precision, no entropy
    coding). Side information: a block whose kept tokens are a prefix costs log2(L + 1) bits for its length, any other
    L bits for its mask.
    """
    keep = tokens.keep
    capacity = keep.shape[-1]
    per_token = math.log2(spec.codebook_size) if spec.codebook_size else _BITS_PER_CHANNEL * spec.token_dim
    is_prefix = (keep[..., 1:] <= keep[..., :-1]).all(-1)
    side = torch.where(is_prefix, math.log2(capacity + 1), float(capacity)).double()
    return keep.sum((1, 2)).double() * per_token + side.sum(1)


class TokenRate(Metric):  # type: ignore[misc]
    """Mean tokens and bits (`clip_bits`) of a clip."""

    full_state_update = False
    tokens: Tensor
    bits: Tensor
    clips: Tensor

    def __init__(self, spec: TokenizerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("bits", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("clips", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, tokens: BlockTokens) -> None:
        """Count the tokens of a batch of clips."""
        self.tokens += tokens.keep.sum()
        self.bits += clip_bits(tokens, self.spec).sum()
        self.clips += len(tokens.keep)

    def compute(self) -> dict[str, Tensor]:
        """`tokens per clip`, `bits per clip` and the number of `clips`, float64; ValueError before the first clip."""
        if self.clips == 0:
            raise ValueError("the token rate of no clips: call update first")
        clips = self.clips.double()
        return {"tokens per clip": self.tokens / clips, "bits per clip": self.bits / clips, "clips": clips}
