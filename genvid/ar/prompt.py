"""Prompts of frame prediction, as prefixes of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genvid.tokens import BlockTokens, VideoTokenizer

Cut = Callable[[BlockTokens], BlockTokens]
"""A `genvid.allocation.Allocator`."""

ENCODED = 16
"""Videos encoded at a time: memory, not results."""


@dataclass(frozen=True)
class Prompt:
    """N videos to continue, as a model over rows reads them."""

    prefixes: list[list[int]]
    """N prefixes, without PAD."""
    null_prefixes: list[list[int]] | None
    """Prefixes without the condition, for guidance; None: the model has none."""
    unpack: Callable[[int, Tensor], BlockTokens]
    """(index of a video, its row (S,)) -> the tokens of the complete video, prompt included."""


def encode_in_parts(tokenizer: VideoTokenizer, video: Tensor, device: torch.device) -> Iterator[BlockTokens]:
    """(N, 3, T, H, W) -> tokens of `ENCODED` videos at a time."""
    for part in torch.split(video, ENCODED):
        yield tokenizer.encode(part.to(device))
