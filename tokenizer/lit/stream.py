"""LIT on a video in chunks: the same result as in one call, in constant memory.

The sender (`StreamEncoder`) holds the last kept latents, C_sel. The receiver (`StreamDecoder`) holds these and the keys
and values of the last filled frames, C_fill.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from genvid.tokenizer.lit.inpainter import Memory
from genvid.tokenizer.lit.model import LIT, as_grid, as_tokens
from genvid.tokenizer.lit.reference import Reference, last_reference
from genvid.tokens import BlockTokens


class StreamAllocator(Protocol):
    """An allocator for streams: a threshold, a price, or a budget of every chunk."""

    def allocate_chunk(self, tokens: BlockTokens, start: Reference | None) -> BlockTokens:
        """The next blocks, thinned. `start`: the receiver's references from earlier ones."""
        ...


class StreamEncoder:
    """Chunks of frames -> thinned tokens: causally by a threshold, or on the cheapest paths to the end of the chunk by
    a price or budget.

    Only the first chunk has a complete first block; later ones are compared with references from before.
    """

    def __init__(self, lit: LIT, allocator: StreamAllocator) -> None:
        self.lit, self.allocator = lit, allocator
        self.codec = lit.codec.stream()
        self.selected: Reference | None = None
        """C_sel."""

    @torch.no_grad()
    def __call__(self, video: Tensor) -> BlockTokens:
        """The next frames (B, 3, T, H, W) in [-1, 1] -> tokens. The codec's stream sets the multiples of T."""
        self.lit.spec.check_frames(video)
        _check_videos(len(video), self.selected)
        tokens = self.allocator.allocate_chunk(as_tokens(self.codec.encode(video)), self.selected)
        assert tokens.latents is not None
        self.selected = last_reference(tokens.latents, tokens.keep, self.selected)
        return tokens


class StreamDecoder:
    """Tokens of one chunk after the other -> frames."""

    def __init__(self, lit: LIT) -> None:
        if not lit.config.inpainter.causal:
            raise ValueError("a non-causal inpainter cannot stream: train one with inpainter.causal true")
        self.lit = lit
        self.codec = lit.codec.stream()
        self.selected: Reference | None = None
        """C_sel, normalised."""
        self.memory: Memory | None = None
        """C_fill."""

    @torch.no_grad()
    def __call__(self, tokens: BlockTokens) -> Tensor:
        """The next tokens -> (B, 3, T, H, W)."""
        _check_videos(len(tokens.keep), self.selected)
        latents, selected, memory = self.lit.restore(tokens, self.selected, self.memory)
        video = self.codec.decode(as_grid(latents, self.lit.grid))
        self.selected, self.memory = selected, memory  # not those of a chunk that the codec refused
        return video


def _check_videos(given: int, selected: Reference | None) -> None:
    """ValueError for another number of videos than in the chunks before."""
    if selected is not None and given != len(selected.latents):
        raise ValueError(f"this stream is of {len(selected.latents)} videos side by side, got {given}")
