"""What a tokenized clip costs to transmit: tokens, and bits with the side information that says which were kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from genvid.tokens import BlockTokens, TokenizerSpec


class TokenRate(Metric):  # type: ignore[misc]
    """Mean tokens and bits of a clip, as its tokenizer counts them (`TokenizerSpec.clip_bits`)."""

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
        self.bits += self.spec.clip_bits(tokens).sum()
        self.clips += len(tokens.keep)

    def compute(self) -> dict[str, Tensor]:
        """`tokens per clip`, `bits per clip` and the number of `clips`, float64; ValueError before the first clip."""
        if self.clips == 0:
            raise ValueError("the token rate of no clips: call update first")
        clips = self.clips.double()
        return {"tokens per clip": self.tokens / clips, "bits per clip": self.bits / clips, "clips": clips}
